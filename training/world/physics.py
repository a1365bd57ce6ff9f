"""Physics: simulates a scene with MuJoCo, and keeps a simulation only if the referee accepts it.

One simulation serves every frame rate: it is recorded in fine steps and interpolated. Gravity is the earth's in every
event; a scene's `speed` scales time: time_scale_of(scene) simulated seconds pass in each second of the clip.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import mujoco as compiled_mujoco
import numpy as np
import torch

from .bodies import Body, bounding_disc, rest_on_ground
from .camera import camera_path, sample_placement
from .layout import place_bystanders
from .plans import GRAVITY, TIME_SCALES, PlanInputs, make_plan
from .referee import find_fault
from .scene import Scene, clip_rng
from .simulation import CHECK_FRAMES, Simulation, check_frames, rotation_matrices
from .solids import visible_fractions

mujoco: Any = compiled_mujoco  # it is compiled and has no type stubs
ATTEMPTS = {1: 40, 2: 160}  # layouts tried for a scene, by edition
ATTEMPTS_PER_EASE = 10  # attempts after which `ease` has grown by 1
STEP = 0.005  # simulated seconds
BOUNCE_STEP = 0.002  # an elastic contact lasts 0.013 s
OFF_CENTRE = 0.001  # metres. MuJoCo 3.14 misplaces the contacts of a cylinder within 1e-14 radians of upright
ROW = 4  # steps between two recorded rows


def simulate(scene: Scene, seconds: float = 0.0) -> Simulation:
    """Simulate a scene for its own seconds, or longer; return the first of ATTEMPTS that the referee accepts.

    Raises RuntimeError where none does, with the scene and the latest fault.
    """
    fault, tries = None, ATTEMPTS[scene.edition]
    for attempt in range(tries):
        ease = min(attempt / ATTEMPTS_PER_EASE, 4.0)
        simulation = _attempt(scene, clip_rng(scene.seed, scene.split, scene.index, 100 + attempt), seconds, ease)
        simulation = replace(simulation, visible=_visible_fractions(scene, simulation))
        fault = find_fault(scene, simulation, ease)
        if fault is None:
            return simulation
    raise RuntimeError(
        f"a scene must be playable within {tries} stagings; {scene} is not: {fault}; change its event or sizes"
    )


def time_scale_of(scene: Scene) -> float:
    """Return the simulated seconds per second of the clip."""
    time_scale = scene.speed * TIME_SCALES.get(scene.event, 1.0)
    return time_scale * 2.0 / scene.seconds if scene.edition == 1 else time_scale  # edition 2: as fast in a longer clip


def _attempt(scene: Scene, rng: np.random.Generator, seconds: float = 0.0, ease: float = 0.0) -> Simulation:
    """Lay out a scene and simulate it for its own seconds, or longer; a higher `ease` gives more visible layouts."""
    time_scale, placement = time_scale_of(scene), sample_placement(rng, ease, scene.rules)
    progress = np.linspace(0, 1, CHECK_FRAMES)
    inputs = PlanInputs(
        scene, rng, camera_path(scene.camera, placement, progress), progress * scene.seconds * time_scale, ease
    )
    plan = make_plan(inputs)
    standing = [(n, thing) for n, thing in enumerate(scene.things) if thing.relation is not None]
    bodies = {n: rest_on_ground(thing, f"thing {n}", rng, scene.rules) for n, thing in standing}
    discs = [(bounding_disc(bodies[n]), thing.relation or "") for n, thing in standing]
    start, positions = place_bystanders(
        rng,
        inputs.camera,
        plan.start,
        plan.path,
        bounding_disc(plan.subject),
        discs,
        plan.obstacles,
        scene.rules.max_separation,
    )
    for (number, _), position in zip(standing, positions, strict=True):
        bodies[number].position[:2] = position
    for body in (plan.subject, *plan.others.values(), *plan.props):
        if body.solid.name != "string":  # which hangs on the subject
            body.position[:2] += start
    bodies |= {0: plan.subject} | plan.others
    actors = [bodies[n] for n in range(len(scene.things))] + plan.props
    step = BOUNCE_STEP if scene.event == "bounce" else STEP
    rows = math.ceil(max(seconds, scene.seconds) * time_scale / (step * ROW)) + 2
    positions, quats, touching = run_mujoco(actors, rows, step)
    solids = tuple(body.solid for body in actors)
    return Simulation(
        solids,
        len(scene.things),
        placement,
        time_scale,
        step * ROW / time_scale,
        positions,
        quats,
        touching,
        np.zeros(0),
    )


def _xml(actors: list[Body], step: float) -> str:
    def numbers(values) -> str:
        return " ".join(f"{float(v):.9g}" for v in values)

    def geom(body: Body) -> str:  # of two that touch, the subject first decides how they slide and bounce
        kind = {"ball": "sphere", "cube": "box"}.get(body.solid.shape, body.solid.shape)
        x, y, z = body.solid.half
        size = {"ball": (x,), "cube": (x, y, z)}.get(body.solid.shape, (x, z))
        condim = 6 if body.friction[2] > 0.001 else 3 if body.friction[0] else 1
        touch = 'contype="0" conaffinity="0"' if body.solid.name == "string" else ""
        rank = 0 if body.fixed else 2 if body is actors[0] else 1
        inertia = (body.mass * (3 * x * x + 4 * z * z) / 12,) * 2 + (body.mass * x * x / 2,)
        mass = f'<inertial pos="{OFF_CENTRE} 0 0" mass="{body.mass}" diaginertia="{numbers(inertia)}"/>'
        return (mass if kind == "cylinder" else "") + (
            f'<geom type="{kind}" size="{numbers(size)}" mass="{body.mass}" condim="{condim}" '
            f'friction="{numbers(body.friction)}" solref="{numbers(body.solref)}" priority="{rank}" {touch}/>'
        )

    def element(body: Body, joint: str, inner: str = "") -> str:
        pose = f'pos="{numbers(body.position)}" quat="{numbers(body.quat)}"'
        return f'<body name="{body.solid.name}" {pose}>{joint}{geom(body)}{inner}</body>'

    strings = "".join(element(body, "") for body in actors if body.solid.name == "string")
    parts = []
    for body in actors:
        if body.pivot is not None:  # a hinge above the body, about an axis that points away from the camera
            own = rotation_matrices(body.quat).T
            above, axis = own @ [0, 0, body.pivot - body.position[2]], own @ [0, -1.0, 0]
            parts.append(element(body, f'<joint type="hinge" pos="{numbers(above)}" axis="{numbers(axis)}"/>', strings))
        elif body.solid.name != "string":
            parts.append(element(body, "" if body.fixed else "<freejoint/>"))
    ground = '<geom type="plane" size="100 100 1" friction="0 0 0"/>'
    option = f'<option timestep="{step}" gravity="0 0 {-GRAVITY}"/>'
    return f"<mujoco>{option}<worldbody>{ground}{''.join(parts)}</worldbody></mujoco>"


def run_mujoco(
    actors: list[Body], rows: int, step: float
) -> tuple[np.ndarray, np.ndarray, list[frozenset[tuple[int, int]]]]:
    """Simulate bodies: positions (R, B, 3), quats (R, B, 4), and the contacts in each row; body -1 is the ground."""
    model = mujoco.MjModel.from_xml_string(_xml(actors, step))
    data = mujoco.MjData(model)
    order = [model.body(body.solid.name).id for body in actors]
    number = {0: -1} | {body: n for n, body in enumerate(order)}
    owner = [number[int(body)] for body in model.geom_bodyid]
    for body, index in zip(actors, order, strict=True):
        if body.pivot is not None:
            data.qpos[model.jnt_qposadr[model.body_jntadr[index]]] = body.initial_angle
        elif not body.fixed:
            first = model.jnt_dofadr[model.body_jntadr[index]]
            data.qvel[first : first + 3] = body.velocity
            data.qvel[first + 3 : first + 6] = (
                rotation_matrices(body.quat).T @ body.angular_velocity
            )  # MuJoCo spins free bodies in their own axes
    mujoco.mj_forward(model, data)
    positions, quats = np.empty((rows, len(actors), 3)), np.empty((rows, len(actors), 4))
    touching, known = [], {}
    for row in range(rows):
        positions[row], quats[row] = data.xpos[order], data.xquat[order]
        pairs = set()
        for _ in range(ROW):  # a contact may be shorter than a row
            key = data.contact.geom.tobytes()
            if key not in known:
                both = ((owner[a], owner[b]) for a, b in data.contact.geom.tolist())
                known[key] = frozenset((min(a, b), max(a, b)) for a, b in both)
            pairs |= known[key]
            mujoco.mj_step(model, data)
        touching.append(frozenset(pairs))
        mujoco.mj_kinematics(model, data)  # a step leaves the poses as they were before it
    return positions, quats, touching


def _visible_fractions(scene: Scene, simulation: Simulation) -> np.ndarray:
    """Return the visible fractions (CHECK_FRAMES, things) over the scene's own seconds, in a square frame."""
    camera, positions, rotations = check_frames(scene, simulation)
    float32 = partial(torch.as_tensor, dtype=torch.float32)
    poses = float32(positions), float32(rotations)
    view = float32(camera.eyes), float32(camera.axes), float32(camera.slopes)
    return visible_fractions(simulation.solids, simulation.things, *poses, *view, grain=10)[1].numpy()

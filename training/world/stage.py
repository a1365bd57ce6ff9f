"""From a scene to motion: MuJoCo moves the bodies, and a take is kept only if it shows what the scene says.

One simulation serves every frame rate: it is recorded in fine steps and read at any time. Gravity is the earth's in
every event, and a scene's `speed` is the speed of the film: pace_of(scene) simulated seconds pass in each second of
clip.
"""

from __future__ import annotations

import math
from dataclasses import replace

import mujoco
import numpy as np
import torch

from .bodies import Body, disc_of, resting
from .camera import film, tripod_of
from .layout import arrange
from .plans import GRAVITY, PACES, Script, plan_of
from .referee import fault_of
from .scene import Scene, rng_of
from .solids import seen
from .take import CHECKED, Take, checked, matrices

TRIES = {1: 40, 2: 160}  # stagings of a scene, by edition
PATIENT = 10  # tries after which a crowded scene is staged in the easiest way
STEP = 0.005  # simulated seconds
BOUNCE_STEP = 0.002  # an elastic contact lasts 0.013 s
OFF_CENTRE = (
    0.001  # metres. MuJoCo 3.14 misplaces the contacts of a cylinder that stands upright to within 1e-14 radians
)
ROW = 4  # steps between two recorded rows


def perform(scene: Scene, seconds: float = 0.0) -> Take:
    """Play a scene for its own seconds, or for longer: the first staging, of TRIES, that shows what the scene says.

    Raises RuntimeError where none does, with the scene and the latest fault.
    """
    fault, tries = None, TRIES[scene.edition]
    for attempt in range(tries):
        ease = min(attempt / PATIENT, 4.0)
        take = stage(scene, rng_of(scene.seed, scene.split, scene.index, 100 + attempt), seconds, ease)
        take = replace(take, visible=visibility(scene, take))
        fault = fault_of(scene, take, ease)
        if fault is None:
            return take
    raise RuntimeError(
        f"a scene must be playable within {tries} stagings; {scene} is not: {fault}; change its event or sizes"
    )


def pace_of(scene: Scene) -> float:
    """Tell how many simulated seconds pass in a second of the clip."""
    pace = scene.speed * PACES.get(scene.event, 1.0)
    return pace * 2.0 / scene.seconds if scene.edition == 1 else pace  # edition 2: as fast in a longer clip


def stage(scene: Scene, rng: np.random.Generator, seconds: float = 0.0, ease: float = 0.0) -> Take:
    """Stage a scene once and simulate it, for its own seconds or longer; the more `ease`, the easier to see."""
    pace, tripod = pace_of(scene), tripod_of(rng, ease, scene.rules)
    progress = np.linspace(0, 1, CHECKED)
    script = Script(scene, rng, film(scene.camera, tripod, progress), progress * scene.seconds * pace, ease)
    plan = plan_of(script)
    standing = [(n, thing) for n, thing in enumerate(scene.things) if thing.relation is not None]
    bodies = {n: resting(thing, f"thing {n}", rng, scene.rules) for n, thing in standing}
    discs = [(disc_of(bodies[n]), thing.relation) for n, thing in standing]
    start, places = arrange(
        rng, script.camera, plan.start, plan.path, disc_of(plan.subject), discs, plan.obstacles, scene.rules.away
    )
    for (number, _), place in zip(standing, places, strict=True):
        bodies[number].place[:2] = place
    for body in (plan.subject, *plan.others.values(), *plan.props):
        if body.solid.name != "string":  # which hangs on the subject
            body.place[:2] += start
    bodies |= {0: plan.subject} | plan.others
    cast = [bodies[n] for n in range(len(scene.things))] + plan.props
    step = BOUNCE_STEP if scene.event == "bounce" else STEP
    rows = math.ceil(max(seconds, scene.seconds) * pace / (step * ROW)) + 2
    places, quats, touching = simulate(cast, rows, step)
    solids = tuple(body.solid for body in cast)
    return Take(solids, len(scene.things), tripod, pace, step * ROW / pace, places, quats, touching, np.zeros(0))


def _xml(cast: list[Body], step: float) -> str:
    def numbers(values) -> str:
        return " ".join(f"{float(v):.9g}" for v in values)

    def geom(body: Body) -> str:  # of two that touch, the subject first decides how they slide and bounce
        kind = {"ball": "sphere", "cube": "box"}.get(body.solid.shape, body.solid.shape)
        x, y, z = body.solid.half
        size = {"ball": (x,), "cube": (x, y, z)}.get(body.solid.shape, (x, z))
        condim = 6 if body.friction[2] > 0.001 else 3 if body.friction[0] else 1
        touch = 'contype="0" conaffinity="0"' if body.solid.name == "string" else ""
        rank = 0 if body.fixed else 2 if body is cast[0] else 1
        inertia = (body.mass * (3 * x * x + 4 * z * z) / 12,) * 2 + (body.mass * x * x / 2,)
        mass = f'<inertial pos="{OFF_CENTRE} 0 0" mass="{body.mass}" diaginertia="{numbers(inertia)}"/>'
        return (mass if kind == "cylinder" else "") + (
            f'<geom type="{kind}" size="{numbers(size)}" mass="{body.mass}" condim="{condim}" '
            f'friction="{numbers(body.friction)}" solref="{numbers(body.solref)}" priority="{rank}" {touch}/>'
        )

    def element(body: Body, joint: str, inner: str = "") -> str:
        pose = f'pos="{numbers(body.place)}" quat="{numbers(body.quat)}"'
        return f'<body name="{body.solid.name}" {pose}>{joint}{geom(body)}{inner}</body>'

    strings = "".join(element(body, "") for body in cast if body.solid.name == "string")
    parts = []
    for body in cast:
        if body.pivot is not None:  # a hinge above the body, about an axis that points away from the camera
            own = matrices(body.quat).T
            above, axis = own @ [0, 0, body.pivot - body.place[2]], own @ [0, -1.0, 0]
            parts.append(element(body, f'<joint type="hinge" pos="{numbers(above)}" axis="{numbers(axis)}"/>', strings))
        elif body.solid.name != "string":
            parts.append(element(body, "" if body.fixed else "<freejoint/>"))
    ground = '<geom type="plane" size="100 100 1" friction="0 0 0"/>'
    option = f'<option timestep="{step}" gravity="0 0 {-GRAVITY}"/>'
    return f"<mujoco>{option}<worldbody>{ground}{''.join(parts)}</worldbody></mujoco>"


def simulate(
    cast: list[Body], rows: int, step: float
) -> tuple[np.ndarray, np.ndarray, list[frozenset[tuple[int, int]]]]:
    """Let bodies move: places (R, B, 3), quats (R, B, 4), and the pairs that touch in each row; -1 is the ground."""
    model = mujoco.MjModel.from_xml_string(_xml(cast, step))
    data = mujoco.MjData(model)
    order = [model.body(body.solid.name).id for body in cast]
    number = {0: -1} | {body: n for n, body in enumerate(order)}
    owner = [number[int(body)] for body in model.geom_bodyid]
    for body, index in zip(cast, order, strict=True):
        if body.pivot is not None:
            data.qpos[model.jnt_qposadr[model.body_jntadr[index]]] = body.lean
        elif not body.fixed:
            first = model.jnt_dofadr[model.body_jntadr[index]]
            data.qvel[first : first + 3] = body.velocity
            data.qvel[first + 3 : first + 6] = (
                matrices(body.quat).T @ body.spin
            )  # MuJoCo spins free bodies in their own axes
    mujoco.mj_forward(model, data)
    places, quats = np.empty((rows, len(cast), 3)), np.empty((rows, len(cast), 4))
    touching, known = [], {}
    for row in range(rows):
        places[row], quats[row] = data.xpos[order], data.xquat[order]
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
    return places, quats, touching


def visibility(scene: Scene, take: Take) -> np.ndarray:
    """Measure the visible fraction (CHECKED, things) of all things over the scene's own seconds, in a square frame."""
    camera, places, turns = checked(scene, take)
    tensors = [
        torch.as_tensor(a, dtype=torch.float32) for a in (places, turns, camera.eyes, camera.axes, camera.slopes)
    ]
    return seen(take.solids, take.things, *tensors, grain=10)[1].numpy()

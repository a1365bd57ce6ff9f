"""A client of the studio for tests: it submits, uploads, generates and lists clips."""

import io

from PIL import Image
from starlette.testclient import TestClient

from app.commands.serve import request_check
from app.commands.studio import studio
from app.queue.jobs import Queue
from app.queue.worker import run_worker
from app.server.service import Service, served_models

ADDRESS = "http://127.0.0.1:8000"
MAX_JOBS = 10  # open jobs of an owner


class StudioClient(TestClient):
    """A client of a single user's studio, with a worker that runs when needed."""

    def __init__(self, folder, tiny_model):
        self.queue = Queue(folder)
        models, check = (
            served_models(self.queue, [str(tiny_model)]),
            request_check("standard", "cpu", [str(tiny_model)]),
        )
        service = Service(self.queue, models, check, max_open_jobs=MAX_JOBS)
        super().__init__(studio(service), base_url=ADDRESS, raise_server_exceptions=False)

    def submit(self, **fields):
        """Queue clips and return their cards."""
        answer = self.post("/studio/generate", json={"prompt": "a red ball bounces", "steps": 2} | fields)
        assert answer.status_code == 200, answer.text
        return answer.json()["cards"]

    def upload(self, content):
        """Upload a file and return the response: its card and its request."""
        answer = self.post("/studio/read", files={"file": ("../../x", content)})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def generate(self, **fields):
        """Queue clips, run a worker, and return the details of each."""
        cards = self.submit(**fields)
        run_worker(self.queue, "cpu", until_empty=True)
        return [self.details(card["id"]) for card in cards]

    def details(self, id):
        return self.get(f"/studio/clips/{id}").raise_for_status().json()

    def list_ids(self, **filters):
        """Return the ids of the clips that the gallery shows."""
        return [card["id"] for card in self.get("/studio/clips", params=filters).raise_for_status().json()["cards"]]

    def refused(self, path, fields, method="POST"):
        """Send a request that must be refused, and return the error message."""
        answer = self.request(method, path, json=fields)
        assert answer.status_code in (400, 404), answer.text
        message = answer.json()["error"]["message"]
        assert message and "\n" not in message and "Traceback" not in message
        assert str(self.queue.folder) not in message and "--" not in message
        return message


def image_bytes(colour: str | tuple[int, int, int] = "red", kind="PNG", size=(96, 64)):
    """Return an image file of one colour."""
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()

"""The fake lifecycle server: sandboxes, snapshots, endpoints. Answers in the service's forms."""

import os
import re
import threading
import time
import uuid
from datetime import datetime, timedelta, timezone
from urllib.parse import parse_qsl

from http11 import go_json
from sandbox import Box, after, copy_root

EXECD_PORT, EGRESS_PORT = 44772, 18080
ENTRYPOINT = ["tail", "-f", "/dev/null"]
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$")
LABEL_NAME = re.compile(r"([a-z0-9.-]+/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$")


class Problem(Exception):
    """An answer in the service's error form."""

    def __init__(self, status, code, message):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class Unprocessable(Exception):
    """FastAPI's 422: what is wrong, as a list of sentences."""


def now():
    return datetime.now(timezone.utc)


def stamp(moment):
    return moment.isoformat().replace("+00:00", "Z")


def parse_time(text):
    """An RFC 3339 time; a Problem when it is none or has no zone."""
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        raise Unprocessable([f"body.expiresAt: {text} is not a time"]) from None
    if moment.tzinfo is None:
        raise Problem(400, "DOCKER::INVALID_EXPIRATION", "expiresAt must have a time zone")
    return moment


def check_labels(metadata):
    for name, value in metadata.items():
        if name.startswith("opensandbox.io/"):
            raise Problem(400, "SANDBOX::INVALID_METADATA_LABEL", f"{name} is reserved")
        short = name.rpartition("/")[2]
        if not LABEL_NAME.match(name) or len(short) > 63:
            raise Problem(400, "SANDBOX::INVALID_METADATA_LABEL", f"{name} is no label name")
        if value is not None and (not LABEL_VALUE.match(value) or len(value) > 63):
            raise Problem(400, "SANDBOX::INVALID_METADATA_LABEL", f"{name}: no value: {value}")


class Sandbox:
    """What the server knows of one sandbox."""

    def __init__(self, server, request, entrypoint):
        self.id = str(uuid.uuid4())
        self.request, self.entrypoint = request, entrypoint
        self.metadata = dict(request.get("metadata") or {})
        self.created = now()
        timeout = request.get("timeout")
        self.expires = self.created + timedelta(seconds=timeout) if timeout else None
        self.timer = None
        self.execd_token = server.execd_token and uuid.uuid4().hex
        self.secure_token = uuid.uuid4().hex if request.get("secureAccess") else ""
        self.egress_token = uuid.uuid4().hex
        self.policy = request.get("networkPolicy") or {"defaultAction": "allow", "egress": []}
        self.box = None
        self.state, self.reason, self.changed = "Pending", "provisioning", self.created

    def become(self, state, reason):
        self.state, self.reason, self.changed = state, reason, now()

    def headers(self, port):
        """What a request to this port must carry."""
        headers = {}
        if port == EXECD_PORT and self.execd_token:
            headers["X-EXECD-ACCESS-TOKEN"] = self.execd_token
        if port == EGRESS_PORT:
            headers["OPENSANDBOX-EGRESS-AUTH"] = self.egress_token
        if self.secure_token:
            headers["OpenSandbox-Secure-Access"] = self.secure_token
        return headers

    def brief(self):
        """The answer to its creation."""
        value = {"id": self.id,
                 "status": {"state": self.state, "reason": self.reason, "message": self.reason,
                            "lastTransitionAt": stamp(self.changed)},
                 "metadata": self.metadata, "createdAt": stamp(self.created),
                 "entrypoint": self.entrypoint}
        if self.request.get("platform"):
            value["platform"] = self.request["platform"]
        if self.expires:
            value["expiresAt"] = stamp(self.expires)
        return value

    def full(self):
        source = {name: self.request[name] for name in ("image", "snapshotId")
                  if self.request.get(name)}
        if source.get("image", {}).get("auth"):
            source["image"] = {"uri": source["image"]["uri"]}
        return {**self.brief(), **source}


class Lifecycle:
    """The server. `directory` is where the roots of sandboxes and snapshots are."""

    def __init__(self, directory, address, ingress, execd_token):
        self.directory, self.address = directory, address
        self.ingress, self.execd_token = ingress, execd_token
        self.sandboxes, self.snapshots, self.volumes = {}, {}, {}
        self.lock = threading.RLock()
        self.routes = {
            ("GET", "/sandboxes"): self.list,
            ("POST", "/sandboxes"): self.create,
            ("GET", "/sandboxes/*"): self.get,
            ("DELETE", "/sandboxes/*"): self.delete,
            ("PATCH", "/sandboxes/*/metadata"): self.patch_metadata,
            ("POST", "/sandboxes/*/pause"): self.pause,
            ("POST", "/sandboxes/*/resume"): self.resume,
            ("POST", "/sandboxes/*/renew-expiration"): self.renew,
            ("POST", "/sandboxes/*/snapshots"): self.create_snapshot,
            ("GET", "/sandboxes/*/endpoints/*"): self.endpoint,
            ("GET", "/snapshots"): self.list_snapshots,
            ("GET", "/snapshots/*"): self.get_snapshot,
            ("DELETE", "/snapshots/*"): self.delete_snapshot,
            ("POST", "/metrics/events"): lambda request, query: (202, None),
        }

    def call(self, method, path, request, query):
        """Status and value of the answer to a request that was found well formed."""
        words = path.split("/")
        for (other, pattern), handler in self.routes.items():
            parts = pattern.split("/")
            if other == method and len(parts) == len(words) and all(
                    part in ("*", word) for part, word in zip(parts, words)):
                stars = [word for part, word in zip(parts, words) if part == "*"]
                return handler(request, query, *stars)
        raise Problem(404, "NOT_FOUND", "Not Found")

    def find(self, name):
        sandbox = self.sandboxes.get(name)
        if not sandbox:
            raise Problem(404, "DOCKER::SANDBOX_NOT_FOUND", f"Sandbox {name} not found.")
        return sandbox

    def stop(self):
        """Ends everything and takes the files away."""
        for sandbox in list(self.sandboxes.values()):
            self.end(sandbox)

    # -------------------------------------------------------------- create

    def create(self, request, query):
        entrypoint, snapshot = self.check(request)
        sandbox = Sandbox(self, request, entrypoint)
        root = os.path.join(self.directory, sandbox.id)
        os.mkdir(root)
        if snapshot:
            copy_root(snapshot["root"], root)
        mounts = [self.mount(volume) for volume in request.get("volumes") or ()]
        sandbox.box = Box(root, sandbox.execd_token or "", request.get("env") or {}, entrypoint,
                          mounts)
        sandbox.become("Running", "CONTAINER_RUNNING")
        with self.lock:
            self.sandboxes[sandbox.id] = sandbox
        self.schedule(sandbox)
        threading.Thread(target=self.watch, args=(sandbox,), daemon=True).start()
        return 202, sandbox.brief()

    def check(self, request):
        """The entry point and the snapshot of a request whose form is right already."""
        if (request.get("extensions") or {}).get("poolRef"):
            raise Problem(400, "SANDBOX::UNSUPPORTED_POOL_REF", "there are no pools here")
        if bool(request.get("image")) == bool(request.get("snapshotId")):
            raise Unprocessable(["body: exactly one of image or snapshotId must be provided"])
        if request.get("image") and not request.get("entrypoint"):
            raise Unprocessable(["body.entrypoint: is required with image"])
        if not request.get("resourceLimits"):
            raise Unprocessable(["body.resourceLimits: is required"])
        proxy = request.get("credentialProxy") or {}
        if proxy.get("enabled") and not request.get("networkPolicy"):
            raise Problem(400, "SANDBOX::INVALID_PARAMETER", "credentialProxy wants networkPolicy")
        check_labels(request.get("metadata") or {})
        self.check_extensions(request.get("extensions") or {})
        platform = request.get("platform")
        if platform and platform["os"] != "linux":
            raise Problem(400, "SANDBOX::INVALID_PARAMETER", f"no platform {platform['os']} here")
        if request.get("image", {}).get("uri", "").startswith("missing/"):
            raise Problem(500, "DOCKER::SANDBOX_IMAGE_PULL_FAILED",
                          f"Failed to pull image {request['image']['uri']}: not found")
        names = [volume["name"] for volume in request.get("volumes") or ()]
        if len(set(names)) < len(names):
            raise Problem(400, "VOLUME::DUPLICATE_NAME", "two volumes of one name")
        snapshot = request.get("snapshotId") and self.find_snapshot(request["snapshotId"])
        if snapshot and snapshot["state"] != "Ready":
            raise Problem(409, "SNAPSHOT::NOT_READY", f"Snapshot {snapshot['id']} is not ready.")
        return request.get("entrypoint") or ENTRYPOINT, snapshot

    @staticmethod
    def check_extensions(extensions):
        extend = extensions.get("access.renew.extend.seconds", "300")
        if not extend.isdigit() or not 300 <= int(extend) <= 86400:
            raise Problem(400, "SANDBOX::INVALID_PARAMETER",
                          "access.renew.extend.seconds: 300 to 86400")

    def mount(self, volume):
        """A volume as bubblewrap mounts it."""
        backends = [name for name in ("host", "pvc", "ossfs") if volume.get(name)]
        if len(backends) != 1:
            raise Problem(400, "VOLUME::INVALID_BACKEND", f"{volume['name']}: one backend, please")
        if backends == ["ossfs"]:
            raise Problem(400, "VOLUME::UNSUPPORTED_BACKEND", "the fake has no ossfs")
        if backends == ["host"]:
            source = volume["host"]["path"]
            if not os.path.isdir(source):
                raise Problem(400, "VOLUME::HOST_PATH_NOT_FOUND", f"{source} does not exist")
        else:
            source = self.claim(volume["pvc"])
        below = volume.get("subPath") or ""
        if ".." in below.split("/") or below.startswith("/"):
            raise Problem(400, "VOLUME::INVALID_SUB_PATH", f"{below} leads out of the volume")
        source = os.path.join(source, below)
        os.makedirs(source, exist_ok=True)
        return "--ro-bind" if volume.get("readOnly") else "--bind", source, volume["mountPath"]

    def claim(self, claim):
        name = claim["claimName"]
        path = os.path.join(self.directory, "volumes", name)
        if not os.path.isdir(path) and not claim.get("createIfNotExists", True):
            raise Problem(404, "VOLUME::PVC_NOT_FOUND", f"there is no volume {name}")
        os.makedirs(path, exist_ok=True)
        return path

    def watch(self, sandbox):
        """Notes when the entry point ends by itself."""
        code = sandbox.box.wait()
        with self.lock:
            if sandbox.id in self.sandboxes:
                failed = code != 0
                sandbox.become("Failed" if failed else "Terminated",
                               "CONTAINER_EXITED_ERROR" if failed else "CONTAINER_EXITED")

    def schedule(self, sandbox):
        """The end of its life, when it has one."""
        if sandbox.timer:
            sandbox.timer.cancel()
        if sandbox.expires:
            left = (sandbox.expires - now()).total_seconds()
            sandbox.timer = after(max(0, left), lambda: self.end(sandbox))

    def end(self, sandbox):
        with self.lock:
            if self.sandboxes.pop(sandbox.id, None) is None:
                return
        if sandbox.timer:
            sandbox.timer.cancel()
        sandbox.box.kill()
        sandbox.box.remove()

    # -------------------------------------------------------------- one sandbox

    def get(self, request, query, name):
        return 200, self.find(name).full()

    def delete(self, request, query, name):
        self.end(self.find(name))
        return 204, None

    def list(self, request, query):
        states = [value for key, value in query if key == "state"]
        wanted = dict(parse_qsl(dict(query).get("metadata", ""), keep_blank_values=True))
        found = [sandbox.full() for sandbox in sorted(self.sandboxes.values(),
                                                      key=lambda one: one.created, reverse=True)
                 if (not states or sandbox.state in states)
                 and all(sandbox.metadata.get(key) == value for key, value in wanted.items())]
        return 200, page(found, query)

    def patch_metadata(self, request, query, name):
        sandbox = self.find(name)
        check_labels(request)
        for key, value in request.items():
            if value is None:
                sandbox.metadata.pop(key, None)
            else:
                sandbox.metadata[key] = value
        return 200, sandbox.full()

    def pause(self, request, query, name):
        sandbox = self.find(name)
        if sandbox.state != "Running":
            raise Problem(409, "DOCKER::SANDBOX_NOT_RUNNING", "Sandbox is not in a running state.")
        sandbox.box.pause()
        sandbox.become("Paused", "CONTAINER_PAUSED")
        return 202, None

    def resume(self, request, query, name):
        sandbox = self.find(name)
        if sandbox.state != "Paused":
            raise Problem(409, "DOCKER::SANDBOX_NOT_PAUSED", "Sandbox is not in a paused state.")
        sandbox.box.resume()
        sandbox.become("Running", "CONTAINER_RUNNING")
        return 202, None

    def renew(self, request, query, name):
        sandbox, expires = self.find(name), parse_time(request["expiresAt"])
        if expires <= now():
            raise Problem(400, "DOCKER::INVALID_EXPIRATION", "expiresAt must be in the future")
        if not sandbox.expires:
            raise Problem(409, "DOCKER::INVALID_EXPIRATION",
                          f"Sandbox {name} does not have automatic expiration enabled.")
        sandbox.expires = expires
        self.schedule(sandbox)
        return 200, {"expiresAt": stamp(expires)}

    def endpoint(self, request, query, name, port):
        sandbox, query = self.find(name), dict(query)
        by_server = query.get("use_server_proxy") == "true"
        if "expires" in query:
            raise Problem(400, "SANDBOX::API_NOT_SUPPORTED" if not by_server
                          else "SANDBOX::INVALID_PARAMETER", "signed endpoints are not supported")
        headers = sandbox.headers(int(port))
        if by_server:
            endpoint = f"{self.address}/sandboxes/{name}/proxy/{port}"
        elif self.ingress == "header":
            endpoint, headers["OpenSandbox-Ingress-To"] = self.address, f"{name}-{port}"
        else:
            endpoint = f"{self.address}/{name}/{port}"
        return 200, {"endpoint": endpoint, **({"headers": headers} if headers else {})}

    # -------------------------------------------------------------- snapshots

    def find_snapshot(self, name):
        snapshot = self.snapshots.get(name)
        if not snapshot:
            raise Problem(404, "SNAPSHOT::NOT_FOUND", f"Snapshot {name} not found.")
        return snapshot

    def create_snapshot(self, request, query, name):
        sandbox = self.find(name)
        if sandbox.state != "Running":
            raise Problem(409, "SNAPSHOT::INVALID_SOURCE_STATE", "Sandbox is not running.")
        snapshot = {"id": str(uuid.uuid4()), "sandboxId": name, "name": request.get("name"),
                    "state": "Creating", "reason": "snapshot_accepted", "created": now(),
                    "changed": now()}
        snapshot["root"] = os.path.join(self.directory, "snapshot-" + snapshot["id"])
        self.snapshots[snapshot["id"]] = snapshot
        shown = show_snapshot(snapshot) # before it is ready
        threading.Thread(target=self.capture, args=(sandbox, snapshot), daemon=True).start()
        return 202, shown

    @staticmethod
    def capture(sandbox, snapshot):
        """Copies the files while nothing in the sandbox moves."""
        time.sleep(0.05)
        sandbox.box.pause()
        try:
            copy_root(sandbox.box.root, snapshot["root"])
            snapshot.update(state="Ready", reason="snapshot_ready", changed=now())
        except OSError as error:
            snapshot.update(state="Failed", reason="snapshot_capture_failed", changed=now(),
                            message=str(error))
        finally:
            sandbox.box.resume()

    def list_snapshots(self, request, query):
        states = [value for key, value in query if key == "state"]
        wanted = dict(query).get("sandboxId")
        found = [show_snapshot(snapshot) for snapshot in self.snapshots.values()
                 if (not states or snapshot["state"] in states)
                 and wanted in (None, snapshot["sandboxId"])]
        return 200, page(found, query)

    def get_snapshot(self, request, query, name):
        return 200, show_snapshot(self.find_snapshot(name))

    def delete_snapshot(self, request, query, name):
        if self.find_snapshot(name)["state"] == "Creating":
            raise Problem(409, "SNAPSHOT::DELETE_CONFLICT", "Snapshot is being created.")
        del self.snapshots[name]
        return 204, None


def show_snapshot(snapshot):
    value = {"id": snapshot["id"], "sandboxId": snapshot["sandboxId"],
             "status": {"state": snapshot["state"], "reason": snapshot["reason"],
                        "message": snapshot.get("message", snapshot["reason"]),
                        "lastTransitionAt": stamp(snapshot["changed"])},
             "createdAt": stamp(snapshot["created"])}
    if snapshot["name"]:
        value["name"] = snapshot["name"]
    return value


def page(found, query):
    """One page of a list, and where it is in all."""
    query = dict(query)
    number, size = int(query.get("page", 1)), int(query.get("pageSize", 20))
    if size > 200:
        raise Unprocessable(["query.pageSize: Input should be less than or equal to 200"])
    pages = -(-len(found) // size)
    return {"items": found[(number - 1) * size:number * size],
            "pagination": {"page": number, "pageSize": size, "totalItems": len(found),
                           "totalPages": pages, "hasNextPage": number < pages}}


def authorize(exchange, key):
    """A Problem when a request does not carry the server's key."""
    given = exchange.headers.get("open-sandbox-api-key")
    if not given:
        raise Problem(401, "MISSING_API_KEY", "Authentication credentials are missing. "
                      "Provide API key via OPEN-SANDBOX-API-KEY header.")
    if given != key:
        raise Problem(401, "INVALID_API_KEY", "Authentication credentials are invalid. "
                      "Check your API key and try again.")


def unprocessable(sentences):
    """The body of a 422."""
    return go_json({"detail": [{"type": "value_error", "loc": sentence.split(":")[0].split("."),
                                "msg": sentence} for sentence in sentences]})

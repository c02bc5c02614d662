"""Files of the fake execd: the real daemon's answers about the real files in the sandbox."""

import grp
import json
import os
import pwd
import re
import shutil
import stat
import tempfile
import threading
import time
from fnmatch import translate
from urllib.parse import quote

from http11 import PIECE, date, head
from runs import (Refused, bad_request, body_of, expand, make_directories, rfc3339,
                  runtime_error)

PARSE = "error parsing request, MAYBE invalid body format."
METADATA = {"path", "owner", "group", "mode"}
DIRECTORY_SIZE = (1 << 63) - 1
NO_OVERLAP = b"invalid range: failed to overlap\n"


def words(error, call):
    """An OSError as Go tells it."""
    names = " ".join(name for name in (error.filename, error.filename2) if name)
    return f"{call} {names}: {error.strerror.lower()}"


def file_error(error, text):
    """What most file calls answer when a path cannot be used."""
    if isinstance(error, FileNotFoundError):
        return Refused(404, "FILE_NOT_FOUND", f"file not found. {text}")
    return runtime_error(f"error accessing file: {text}")


# An isolated session may see another directory in a place: (place, directory) in this thread.
seen = threading.local()


def absolute(path):
    path = os.path.abspath(expand(path))
    place, directory = getattr(seen, "instead", ("", ""))
    if place and (path == place or path.startswith(place + "/")):
        path = directory + path[len(place):]
    return path


def shown(path):
    """A path as the asker knows it."""
    place, directory = getattr(seen, "instead", ("", ""))
    return place + path[len(directory):] if place and path.startswith(directory) else path


def name_of(lookup, number, field):
    try:
        return getattr(lookup(number), field)
    except KeyError:
        return str(number)


def info(path):
    """One FileInfo."""
    status = os.lstat(path)
    mode = status.st_mode
    kind = ("symlink" if stat.S_ISLNK(mode) else "directory" if stat.S_ISDIR(mode)
            else "file" if stat.S_ISREG(mode) else "other")
    return {"path": shown(path), "type": kind, "size": status.st_size,
            "modified_at": rfc3339(status.st_mtime_ns), "created_at": rfc3339(status.st_ctime_ns),
            "owner": name_of(pwd.getpwuid, status.st_uid, "pw_name"),
            "group": name_of(grp.getgrgid, status.st_gid, "gr_name"),
            "mode": int(f"{mode & 0o777:o}")}


def set_permission(path, permission):
    """Mode, owner and group; raises a ValueError with Go's words."""
    mode = permission.get("mode") or 0
    if mode:
        try:
            bits = int(str(mode), 8)
        except ValueError:
            raise ValueError(f'strconv.ParseUint: parsing "{mode}": invalid syntax') from None
        try:
            os.chmod(path, bits & 0o777)
        except OSError as error:
            raise ValueError(words(error, "chmod")) from error
    owner, group = permission.get("owner"), permission.get("group")
    if not owner and not group:
        return
    try:
        uid = pwd.getpwnam(owner).pw_uid if owner else -1
    except KeyError:
        raise ValueError(f"failed to lookup user {owner}: user: unknown user {owner}") from None
    try:
        gid = grp.getgrnam(group).gr_gid if group else -1
    except KeyError:
        raise ValueError(f"failed to lookup group {group}: group: unknown group {group}") from None
    try:
        os.chown(path, uid, gid)
    except OSError as error:
        reason = words(error, "chown")
        raise ValueError(f"failed to set owner/group for {path}: {reason}") from error


# ------------------------------------------------------------------ questions


def get_info(exchange):
    found = {}
    for path in exchange.params("path"):
        try:
            found[path] = info(absolute(path))
        except ValueError as error:
            raise runtime_error(f"error accessing file: invalid path {path}: {error}") from error
        except FileNotFoundError as error:
            text = f"file not found: {path}: {words(error, 'lstat')}"
            raise file_error(error, text) from error
        except OSError as error:
            text = f"error accessing file {path}: {words(error, 'lstat')}"
            raise file_error(error, text) from error
    exchange.json(200, dict(sorted(found.items())))


def root_of(exchange):
    """The query's path, absolute."""
    path = exchange.param("path")
    if not path:
        raise Refused(400, "MISSING_QUERY", "missing query parameter 'path'")
    try:
        return absolute(path)
    except ValueError as error:
        raise runtime_error(f"error converting path {path} to absolute. {error}") from error


def matcher(pattern):
    """A glob that is held against names only. `**/` is for nothing, `{a,b}` is a choice."""
    if pattern.count("[") > pattern.count("]"):
        raise runtime_error(f"error searching files. invalid pattern {pattern}: "
                            "syntax error in pattern")
    pattern = re.sub(r"^(\*\*/)+", "", pattern)
    choice = re.search(r"\{([^{}]*)\}", pattern)
    if choice:
        options = [pattern[:choice.start()] + word + pattern[choice.end():]
                   for word in choice[1].split(",")]
        matchers = [matcher(option) for option in options]
        return lambda name: any(match(name) for match in matchers)
    if "/" in pattern:
        return lambda name: False
    pattern = re.sub(r"\\(.)", r"[\1]", pattern.replace("[^", "[!"))
    expression = re.compile(translate(pattern))
    return lambda name: expression.match(name) is not None


def search(exchange):
    root = root_of(exchange)
    try:
        os.stat(root)
    except OSError as error:
        raise file_error(error, words(error, "stat")) from error
    matches = matcher(exchange.param("pattern") or "**")
    found = []
    for path, is_directory in walk(root):
        if not is_directory and matches(os.path.basename(path)):
            found.append(info(path))
    exchange.json(200, found)


def walk(path):
    """All below, each directory before what is in it, in order of names; links are not followed."""
    is_directory = stat.S_ISDIR(os.lstat(path).st_mode)
    yield path, is_directory
    if is_directory:
        for name in sorted(os.listdir(path)):
            yield from walk(os.path.join(path, name))


def entries(root, depth):
    found = []
    for name in sorted(os.listdir(root)) if depth else ():
        entry = info(os.path.join(root, name))
        found.append(entry)
        if entry["type"] == "directory":
            found += entries(entry["path"], depth - 1)
    return found


def list_directory(exchange):
    raw = exchange.param("depth") or "1"
    if not raw.isdigit():
        raise bad_request(f"invalid query parameter 'depth': {raw}")
    root = root_of(exchange)
    try:
        mode = os.lstat(root).st_mode
    except OSError as error:
        raise file_error(error, words(error, "lstat")) from error
    if stat.S_ISLNK(mode):
        raise bad_request(f"path is a symbolic link, refusing to traverse: {root}")
    if not stat.S_ISDIR(mode):
        raise bad_request(f"path is not a directory: {root}")
    exchange.json(200, entries(root, int(raw)))


# ------------------------------------------------------------------ changes


def remove_files(exchange):
    for path in exchange.params("path"):
        try:
            target = absolute(path)
            if os.path.isdir(target):
                raise ValueError(f"path is a directory: {path}")
            if os.path.exists(target):
                os.remove(target)
        except (ValueError, OSError) as error:
            raise runtime_error(f"error removing file {path}. {error}") from error
    exchange.answer(200)


def change_permissions(exchange):
    for path, permission in body_of(exchange, PARSE).items():
        try:
            set_permission(absolute(path), permission)
        except ValueError as error:
            raise runtime_error(f"error changing permissions for {path}. {error}") from error
    exchange.answer(200)


def move(exchange):
    for item in body_of(exchange, PARSE):
        try:
            source, target = absolute(item["src"]), absolute(item["dest"])
            if not os.path.exists(source):
                os.stat(source)
            make_directories(os.path.dirname(target))
            if os.path.exists(target):
                raise runtime_error("error accessing file: destination path already exists: "
                                    + item["dest"])
            os.rename(source, target)
        except FileNotFoundError as error:
            text = f"source path not found: {item['src']}: {words(error, 'stat')}"
            raise file_error(error, text) from error
        except OSError as error:
            raise runtime_error("error accessing file: failed to rename file: "
                                + words(error, "rename")) from error
        except ValueError as error:
            raise runtime_error("error accessing file: failed to create destination directory: "
                                f"{error}") from error
    exchange.answer(200)


def replace(exchange):
    counts = {}
    for path, item in body_of(exchange, PARSE).items():
        try:
            target = absolute(path)
            os.stat(target)
            with open(target, "rb") as file:
                text = file.read()
        except ValueError as error:
            raise runtime_error(f"error accessing file: {error}") from error
        except IsADirectoryError as error:
            raise file_error(error, words(error, "read")) from error
        except OSError as error:
            raise file_error(error, words(error, "stat")) from error
        old = item["old"].encode()
        if not old:
            raise bad_request("old content must not be empty")
        with open(target, "wb") as file:
            file.write(text.replace(old, item["new"].encode()))
        counts[path] = {"replacedCount": text.count(old)}
    if exchange.param("verbose") == "true":
        exchange.json(200, dict(sorted(counts.items())))
    else:
        exchange.answer(200)


def create_directories(exchange):
    for path, permission in body_of(exchange, PARSE).items():
        try:
            target = absolute(path)
            existed = os.path.exists(target)
            make_directories(target)
            if not existed:
                set_permission(target, permission)
        except ValueError as error:
            raise runtime_error(f"error accessing file: {error}") from error
    exchange.answer(200)


def remove_directories(exchange):
    for path in exchange.params("path"):
        try:
            target = absolute(path)
            if os.path.islink(target) or os.path.isfile(target):
                os.remove(target)
            elif os.path.exists(target):
                shutil.rmtree(target)
        except (ValueError, OSError) as error:
            raise runtime_error(f"error removing directory {path}. {error}") from error
    exchange.answer(200)


# ------------------------------------------------------------------ upload


class Form:
    """A multipart body, read as it comes: metadata into memory, files into files."""

    def __init__(self, exchange, boundary):
        self.exchange = exchange
        self.mark = b"\r\n--" + boundary.encode("latin-1")
        self.buffer = b"\r\n"
        self.metadata, self.files = [], []

    def more(self):
        data = self.exchange.read(PIECE)
        if not data:
            raise ValueError("the body ended in a part")
        self.buffer += data

    def until(self, mark, write):
        """Passes on all before `mark`, which is taken away."""
        while (at := self.buffer.find(mark)) < 0:
            keep = len(mark) - 1
            if len(self.buffer) > keep:
                write(self.buffer[:-keep])
                self.buffer = self.buffer[-keep:]
            self.more()
        write(self.buffer[:at])
        self.buffer = self.buffer[at + len(mark):]

    def read(self):
        self.until(self.mark, lambda data: None)
        while True:
            while len(self.buffer) < 2:
                self.more()
            if self.buffer.startswith(b"--"):
                return self
            self.part()

    def part(self):
        parts = []
        self.until(b"\r\n\r\n", parts.append)
        text = b"".join(parts).decode("utf-8", "replace")
        disposition = re.search(r"(?im)^content-disposition:(.*)$", text)
        fields = dict(re.findall(r'(\w+)="([^"]*)"', disposition[1] if disposition else ""))
        # Only a part with a file's name is a file: what has none is a form's value, not seen here.
        is_file = "filename" in fields
        if is_file and fields.get("name") == "file":
            with tempfile.NamedTemporaryFile(prefix="multipart-", delete=False) as file:
                self.files.append(file.name)
                self.until(self.mark, file.write)
            return
        parts = []
        self.until(self.mark, parts.append)
        if is_file and fields.get("name") == "metadata":
            self.metadata.append(b"".join(parts))


def upload(exchange):
    kind = exchange.headers.get("content-type", "")
    boundary = re.search(r'boundary="?([^";,]+)"?', kind)
    form = Form(exchange, boundary[1] if boundary else "")
    try:
        if not kind.startswith("multipart/form-data") or not boundary:
            raise Refused(400, "INVALID_FILE", "multipart form is empty")
        try:
            form.read()
        except ValueError as error:
            raise Refused(400, "INVALID_FILE", "multipart form is empty") from error
        store(form)
        exchange.answer(200)
    finally:
        for path in form.files:
            os.path.exists(path) and os.remove(path)


def store(form):
    """Puts each file where its metadata says."""
    if not form.metadata:
        raise Refused(400, "INVALID_FILE_METADATA", "metadata file is missing")
    if not form.files:
        raise Refused(400, "INVALID_FILE_CONTENT", "file is missing")
    if len(form.metadata) != len(form.files):
        raise Refused(400, "INVALID_FILE", "metadata and file count mismatch: "
                      f"{len(form.metadata)} vs {len(form.files)}")
    for data, temporary in zip(form.metadata, form.files):
        metadata = metadata_of(data)
        target = absolute(metadata["path"])
        try:
            make_directories(os.path.dirname(target))
        except ValueError as error:
            raise runtime_error("error creating target directory "
                                f"{os.path.dirname(target)}. {error}") from error
        try:
            with open(temporary, "rb") as source, \
                    open(target, "wb", opener=lambda p, f: os.open(p, f, 0o777)) as copy:
                shutil.copyfileobj(source, copy, PIECE)
        except OSError as error:
            raise runtime_error(f"error opening destination file {target}. {words(error, 'open')}"
                                ) from error
        try:
            set_permission(target, metadata)
        except ValueError as error:
            raise runtime_error(f"error chmoding file {target}. {error}") from error


def metadata_of(data):
    try:
        metadata = json.loads(data)
    except ValueError as error:
        first = data.strip()[:1].decode("latin-1")
        raise Refused(400, "INVALID_FILE_METADATA", "invalid metadata format. invalid character "
                      f"'{first}' looking for beginning of value") from error
    if not metadata.get("path"):
        raise Refused(400, "INVALID_FILE_METADATA", "metadata path is empty")
    if set(metadata) - METADATA:
        raise bad_request("the specification knows no such metadata: "
                          + ", ".join(sorted(set(metadata) - METADATA)))
    return metadata


# ------------------------------------------------------------------ download


def parse_range(text, size):
    """The first range as (start, length); None when none applies, ValueError when it is no range.
    The last no bytes of a file are a range behind its end."""
    if not text.startswith("bytes="):
        raise ValueError("invalid range")
    for part in text[6:].split(","):
        first, dash, last = part.strip().partition("-")
        if not part.strip():
            continue
        if not dash:
            raise ValueError("invalid range")
        if first == "":
            start, length = max(0, size - int(last)), min(size, int(last))
            if length == 0:
                return size, 0
        else:
            start = int(first)
            length = (int(last) - start + 1) if last else size - start
            if last and int(last) < start:
                raise ValueError("invalid range")
        if start < size:
            return start, min(length, size - start)
    return None


def disposition(name):
    if name.isascii():
        return f'attachment; filename="{name}"'
    name = quote(name)
    return f"attachment; filename=\"{name}\"; filename*=UTF-8''{name}"


def download(exchange):
    raw = exchange.param("path")
    if not raw:
        raise Refused(400, "MISSING_QUERY", "missing query parameter 'path'")
    try:
        path = absolute(raw) if raw.startswith("/") else expand(raw)
    except ValueError as error:
        raise runtime_error(f"error resolving file path: {raw}. {error}") from error
    by_line = exchange.param("offset") or exchange.param("limit")
    wanted = exchange.headers.get("range")
    if by_line and wanted:
        raise bad_request("line-based reading (offset/limit) and byte range (Range header) are "
                          "mutually exclusive")
    if os.path.isdir(path):
        return send_directory(exchange, path)
    try:
        file = open(path, "rb")
    except OSError as error:
        raise file_error(error, words(error, "open")) from error
    with file:
        if by_line:
            send_lines(exchange, file)
        else:
            send_bytes(exchange, file, path, wanted)


def send_directory(exchange, path):
    """An end that is never reached."""
    exchange.connection.closing = True
    exchange.answered = True
    exchange.connection.send(start(200, path, DIRECTORY_SIZE, [("Accept-Ranges", "bytes")]))


def start(status, path, length, more=()):
    return head(status, [*more, ("Content-Disposition", disposition(os.path.basename(path))),
                         ("Content-Length", length), ("Content-Type", "application/octet-stream"),
                         ("Date", date())])


def send_bytes(exchange, file, path, wanted):
    status = os.fstat(file.fileno())
    size = status.st_size
    modified = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(status.st_mtime))
    exchange.answered = True
    connection = exchange.connection
    whole = [("Accept-Ranges", "bytes"), ("Last-Modified", modified)]
    try:
        found = parse_range(wanted, size) if wanted else (0, size)
    except ValueError:
        connection.closing = True # the length is the file's, the body is empty
        connection.send(start(416, path, size))
        return
    if not wanted or (size == 0 and found is None):
        copy(connection, start(200, path, size, whole), file, 0, size)
    elif found is None:
        exchange.answer(416, [("Content-Disposition", disposition(os.path.basename(path))),
                              ("Content-Range", f"bytes */{size}"),
                              ("Content-Type", "text/plain; charset=utf-8"),
                              ("X-Content-Type-Options", "nosniff")], NO_OVERLAP)
    else:
        first, length = found
        more = [("Content-Range", f"bytes {first}-{first + length - 1}/{size}")]
        more += whole if length == 0 else []
        copy(connection, start(206, path, length, more), file, first, length)


def copy(connection, first_bytes, file, first, length):
    connection.send(first_bytes)
    file.seek(first)
    while length > 0 and (data := file.read(min(length, PIECE))):
        connection.send(data)
        length -= len(data)


def send_lines(exchange, file):
    numbers = []
    for name, default in (("offset", 1), ("limit", None)):
        raw = exchange.param(name)
        if raw and (not raw.lstrip("-").isdigit() or int(raw) < 1):
            raise bad_request(f"invalid query parameter '{name}': {raw}")
        numbers.append(int(raw) if raw else default)
    offset, limit = numbers
    lines = [line.rstrip(b"\r\n") for line in file]
    chosen = lines[offset - 1:None if limit is None else offset - 1 + limit]
    exchange.answer(200, [("Content-Type", "text/plain; charset=utf-8")], b"\n".join(chosen))


ROUTES = {
    ("GET", "/files/info"): get_info,
    ("DELETE", "/files"): remove_files,
    ("POST", "/files/mv"): move,
    ("POST", "/files/permissions"): change_permissions,
    ("GET", "/files/search"): search,
    ("POST", "/files/replace"): replace,
    ("POST", "/files/upload"): upload,
    ("GET", "/files/download"): download,
    ("GET", "/directories/list"): list_directory,
    ("POST", "/directories"): create_directories,
    ("DELETE", "/directories"): remove_directories,
}

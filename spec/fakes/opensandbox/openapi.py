"""Holds requests and answers against the OpenAPI files of the service.

Stricter than they are written: a field or a query parameter that they do not name is refused, so
that a client with a slip of the pen cannot pass. What later clients send and the files lack is in
`later.yaml`, which is laid over them.
"""

import json
import os
import re
from urllib.parse import unquote

import yaml
from jsonschema import Draft202012Validator, RefResolver

HERE = os.path.dirname(os.path.abspath(__file__))
FILES = {"lifecycle": "sandbox-lifecycle.yml", "execd": "execd-api.yaml",
         "egress": "egress-api.yaml"}


def load(name):
    with open(os.path.join(HERE, name), encoding="utf-8") as file:
        return yaml.load(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def lay_over(below, above):
    """Adds to one tree what another has."""
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            lay_over(below[key], value)
        else:
            below[key] = value


def close(schema):
    """No object may have properties that are not named."""
    if isinstance(schema, list):
        for part in schema:
            close(part)
    elif isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict):
            schema.setdefault("additionalProperties", False)
        for key, part in schema.items():
            if key not in ("example", "examples", "default", "enum"):
                close(part)


def typed(text, schema):
    """A query's or path's text as the type that its schema wants; itself when it is none."""
    kind = schema.get("type")
    if kind == "integer" and re.fullmatch(r"-?\d+", text):
        return int(text)
    if kind == "number" and re.fullmatch(r"-?\d+(\.\d+)?", text):
        return float(text)
    if kind == "boolean" and text in ("true", "false"):
        return text == "true"
    return text


class Operation:
    """One method of one path."""

    def __init__(self, api, method, path, value, shared):
        self.api, self.method, self.path, self.value = api, method, path, value
        names = re.findall(r"\{(\w+)\}", path)
        self.pattern = re.compile(re.sub(r"\\\{\w+\\\}", "([^/]+)", re.escape(path)) + "$")
        self.fixed = len(names)
        self.names = names
        parameters = [api.resolve(part) for part in shared + value.get("parameters", [])]
        self.parameters = {(part["in"], part["name"]): part for part in parameters}

    def complaints(self, path, query, headers, body):
        """All that is wrong with a request, as a list of sentences."""
        found = list(self.wrong_path(path)) + list(self.wrong_query(query))
        found += list(self.wrong_body(headers, body))
        return found

    def wrong_path(self, path):
        for name, text in zip(self.names, self.pattern.match(path).groups()):
            schema = self.parameters.get(("path", name), {}).get("schema", {"type": "string"})
            yield from self.api.wrong(typed(unquote(text), schema), schema, f"path {name}")

    def wrong_query(self, query):
        for (place, name), part in self.parameters.items():
            if place == "query" and part.get("required") and name not in dict(query):
                yield f"query {name}: is required"
        for name, text in query:
            part = self.parameters.get(("query", name))
            if part is None:
                yield f"query {name}: the specification knows no such parameter"
                continue
            schema = self.api.resolve(part.get("schema", {}))
            if schema.get("type") == "array":
                schema = self.api.resolve(schema.get("items", {}))
            yield from self.api.wrong(typed(text, schema), schema, f"query {name}")

    def wrong_body(self, headers, body):
        """`body` is None when it is not JSON and was not read."""
        wanted = self.api.resolve(self.value.get("requestBody", {}))
        kinds = wanted.get("content", {})
        kind = headers.get("content-type", "").split(";")[0].strip().lower()
        if body is None:
            if "multipart/form-data" in kinds and kind != "multipart/form-data":
                yield f"body: is {kind or 'of no type'}, not multipart/form-data"
            return
        if not body.strip():
            if wanted.get("required"):
                yield "body: is required"
            return
        if not kinds:
            yield "body: the specification has none here"
            return
        if kind not in kinds:
            yield f"body: is {kind or 'of no type'}, not {' or '.join(kinds)}"
            return
        try:
            value = json.loads(body)
        except ValueError as error:
            yield f"body: is not JSON: {error}"
            return
        yield from self.api.wrong(value, kinds[kind].get("schema", {}), "body")

    def wrong_answer(self, status, kind, body):
        """All that is wrong with an answer that has a JSON body."""
        responses = self.value["responses"]
        response = responses.get(str(status)) or responses.get(status)
        if response is None:
            return # what the service says beyond its specification, it says here too
        content = self.api.resolve(response).get("content", {})
        schema = content.get(kind, {}).get("schema")
        if schema and body:
            yield from self.api.wrong(json.loads(body), schema, "answer")


class Api:
    """One OpenAPI file."""

    def __init__(self, name, above):
        self.document = load(FILES[name])
        lay_over(self.document, above)
        close(self.document["components"].get("schemas", {}))
        self.resolver = RefResolver.from_schema(self.document)
        self.operations = []
        for path, value in self.document["paths"].items():
            for method in ("get", "put", "post", "patch", "delete"):
                if method in value:
                    self.operations.append(Operation(self, method.upper(), path, value[method],
                                                     value.get("parameters", [])))
        self.operations.sort(key=lambda operation: operation.fixed)

    def resolve(self, value):
        while "$ref" in value:
            value = self.resolver.resolve(value["$ref"])[1]
        return value

    def wrong(self, value, schema, place):
        validator = Draft202012Validator(schema, resolver=self.resolver)
        for error in validator.iter_errors(value):
            where = ".".join([place, *map(str, error.path)])
            yield f"{where}: {error.message}"

    def find(self, method, path):
        """The operation for a request; paths without parameters come first."""
        for operation in self.operations:
            if operation.method == method and operation.pattern.match(path):
                return operation
        return None


def load_all():
    above = load("later.yaml")
    return {name: Api(name, above.get(name, {})) for name in FILES}

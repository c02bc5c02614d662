"""The fake egress sidecar: keeps the policy that it is given, and holds nothing against it."""

import json


def status(policy):
    mode = {"deny": "deny_all", "allow": "allow_all"}[policy.get("defaultAction", "deny")]
    return {"status": "ok", "mode": mode, "enforcementMode": "dns", "policy": policy}


def handle(sandbox, exchange, body):
    """Answers one request, whose form was found right."""
    if exchange.headers.get("opensandbox-egress-auth") != sandbox.egress_token:
        exchange.text(401, "unauthorized\n")
        return
    policy = sandbox.policy
    rules = policy.get("egress") or []
    if exchange.method == "PATCH":
        new = {}
        for rule in json.loads(body):
            new.setdefault(rule["target"], rule)
        policy["egress"] = list(new.values()) + [rule for rule in rules
                                                 if rule["target"] not in new]
    elif exchange.method == "DELETE":
        gone = json.loads(body)
        policy["egress"] = [rule for rule in rules if rule["target"] not in gone]
    elif exchange.method != "GET":
        exchange.text(405, "method not allowed\n")
        return
    exchange.json(200, status(policy))

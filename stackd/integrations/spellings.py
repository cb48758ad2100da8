"""The origin's ways to write the same thing, turned into one before a definition is read.

149 definitions were written by many hands: an API key is `{type, name, prefix}` or `{apiKeyLocation, apiKeyName,
apiKeyPrefix}`, beside `type` or below `config`, and limits are one map of periods. What is none of them stays as
it is, for the model to refuse.
"""

from __future__ import annotations

from typing import Any, Final

from stackd.core.json import Json

_AUTH_TYPES: Final = {
    "apikey": "api_key",
    "api-key": "api_key",
    "basic_auth": "basic",
    "basicauth": "basic",
    "bearer_token": "bearer",
    "token": "bearer",
    "personal_access_token": "bearer",
    "oauth": "oauth2",
    "hmac": "signer",
    "": "none",
}
_UNSUPPORTED: Final = ("aws_credentials", "aws_sigv4", "kubeconfig", "oauth1", "digest", "jwt")
AUTH_KEYS: Final = {
    "apiKeyLocation": "in",
    "location": "in",
    "apiKeyName": "name",
    "headerName": "name",
    "paramName": "name",
    "apiKeyPrefix": "prefix",
    "apiKeyValue": "value",
    "authUrl": "authorizeUrl",
    "authorizationUrl": "authorizeUrl",
    "authorization_url": "authorizeUrl",
    "token_url": "tokenUrl",
    "additionalParams": "query",
    "of": "parts",
}
# Further keys that are read otherwise than they stand in the models.
AUTH_KEYS_TAKEN_APART: Final = ("config", "fields")
OPERATION_KEYS: Final = ("params", "path", "output")
_PLACES: Final = {"headers": "header", "querystring": "query", "query_param": "query"}
_PERIODS: Final = {
    "requestsPerSecond": 1.0,
    "requestsPerMinute": 60.0,
    "requestsPerHour": 3600.0,
    "requestsPerDay": 86_400.0,
    "dailyLimit": 86_400.0,
}
_BURSTS: Final = ("burst", "burstLimit", "burstAllowed")
_RUNTIMES: Final = {
    "node": "python",
    "nodejs": "python",
    "apps_script": "appsScript",
    "apps-script": "appsScript",
    "gas": "appsScript",
    "cloud_worker": "cloudWorker",
    "cloud-worker": "cloudWorker",
    "worker": "cloudWorker",
    "generic": "http",
}


def auth(given: Any) -> Any:
    """An authentication, in our spelling."""
    if isinstance(given, str):
        given = {"type": given}
    if not isinstance(given, dict):
        return given
    config = given.get("config")
    flat = {key: value for key, value in given.items() if key not in ("config", "fields")}
    if isinstance(config, dict):
        inner = dict(config)
        if inner.get("type") in ("header", "query", "cookie", "headers"):  # where a key goes
            inner.setdefault("in", inner.pop("type"))
        flat = inner | {key: value for key, value in flat.items() if value is not None}
    flat = {AUTH_KEYS.get(key, key): value for key, value in flat.items()}
    kind = str(flat.get("type", "none")).strip()
    lower = kind.lower()
    if lower == "vault_token":
        flat |= {"type": "api_key", "in": "header", "name": "X-Vault-Token"}
    elif lower in _UNSUPPORTED:
        flat = {"type": "none", "unsupported": lower}
    else:
        flat["type"] = _AUTH_TYPES.get(lower, lower)
        if lower == "hmac":
            flat.setdefault("signer", "hmac")
    if isinstance(place := flat.get("in"), str):
        flat["in"] = _PLACES.get(place.lower(), place.lower())
    if flat["type"] == "api_key" and not flat.get("name"):
        flat["name"] = "Authorization" if flat.get("in", "header") == "header" else "api_key"
    if isinstance(scopes := flat.get("scopes"), str):
        flat["scopes"] = scopes.replace(",", " ").split()
    elif isinstance(scopes, dict):
        flat["scopes"] = list(scopes)
    if isinstance(pkce := flat.get("pkce"), bool):
        flat["pkce"] = "S256" if pkce else "off"
    for name in ("query", "headers"):
        if isinstance(flat.get(name), dict):
            flat[name] = {key: str(value) for key, value in flat[name].items()}
    return flat


def rate_limits(given: Any) -> Any:
    """Limits as a list, from one map of periods or a list of ours."""
    if given is None:
        return []
    if not isinstance(given, dict):
        return given
    if "limit" in given and "per" in given:
        return [given]
    burst = next((given[name] for name in _BURSTS if _is_positive(given.get(name))), None)
    scope = given.get("scope")
    own = {"scope": scope} if scope in ("connection", "connector", "host") else {}
    if _is_positive(given.get("requests")) and _is_positive(given.get("period")):
        return [{"limit": given["requests"], "per": float(given["period"]), "burst": burst, **own}]
    found = []
    for name, per in _PERIODS.items():
        if _is_positive(given.get(name)):
            short = {"burst": burst} if burst is not None and per <= 60.0 else {}
            found.append({"limit": given[name], "per": per, **short, **own})
    return found


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def runtimes(given: Any) -> Any:
    """Names of runtimes, each once, by our names."""
    if not isinstance(given, list):
        return []
    known = [_RUNTIMES.get(one, one) for one in given if isinstance(one, str)]
    return list(dict.fromkeys(known))


def operation(given: Any) -> Any:
    """An operation; what the origin leaves open is closed."""
    if not isinstance(given, dict):
        return given
    found = {key: value for key, value in given.items() if value is not None or key in _NULLABLE}
    if not isinstance(found.get("parameters", {}), dict):
        found["parameters"] = {}
    if "params" in found and "parameters" not in found:
        found["parameters"] = found.pop("params")
    if isinstance(found.get("path"), str) and "endpoint" not in found:
        found["endpoint"] = found.pop("path")
    output = found.pop("output", None)
    if isinstance(output, dict) and "select" in output:
        found.setdefault("select", output["select"])
    return found


_NULLABLE: Final = ("fallback", "sample")
_DOCS: Final = {"documentation": "docs", "docsUrl": "docs"}
APP_KEYS: Final = (*_DOCS, "actions_append")


def app(given: Any) -> Any:
    """The part of a definition that is about the app itself."""
    if not isinstance(given, dict):
        return given
    found = {
        key: value
        for key, value in given.items()
        if key not in ("actions", "triggers", "actions_append") and value is not None
    }
    for theirs, ours in _DOCS.items():
        if isinstance(found.get(theirs), str):
            found.setdefault(ours, found[theirs])
    network = found.get("network")
    if isinstance(network, dict):
        outbound = network.get("requiredOutbound")
        if isinstance(outbound, dict):
            hosts: list[Json] = [*outbound.get("domains", []), *outbound.get("ipRanges", [])]
            found["network"] = {"requiredOutbound": hosts}
        if network.get("privateNetwork") is not None:
            found.setdefault("privateNetwork", network["privateNetwork"])
    for name in ("version", "schemaVersion"):
        if isinstance(found.get(name), int | float):
            found[name] = str(found[name])
    return found

#!/usr/bin/env python3
"""A provider of testbeds in Python: each "machine" is a folder, and its address is that of this computer.

It speaks version 1 of the protocol, one JSON object a line, on standard input and output. Whatever is for people goes to
standard error.
"""

import json
import os
import shutil
import sys

KEYS = [{"name": "folder", "kind": "text", "help": "Where machines are made", "required": True}]
config = {}


def say(message):
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def hear():
    line = sys.stdin.readline()
    if not line:
        sys.exit(0)  # Nobody is there any more. What was made is found again.
    return json.loads(line)


class Cancelled(Exception):
    """The other side does not want the call any more."""


class Failed(Exception):
    """The other side could not keep something, and this is its error."""


def keep(call, key, value):
    """Keeps a value for later calls, and waits until it is safe."""
    say({"type": "keep", "id": call, "keep": 1, "key": key, "value": value})
    while True:
        message = hear()
        if message["type"] == "cancel" and message["id"] == call:
            raise Cancelled()
        if message["type"] == "kept":
            if message.get("error"):
                raise Failed(message["error"])
            return


def folder_of(experiment):
    return os.path.join(config["folder"], experiment)


def init(call, params):
    reservation = params["reservation"]
    root = folder_of(reservation["experiment"])
    hosts, made = [], []
    try:
        for number, machine in enumerate(reservation["machines"]):
            name = machine["name"]
            place = os.path.join(root, name)
            if os.path.isdir(place):
                say({"type": "progress", "id": call, "machine": name, "event": "found"})
            else:
                keep(call, name, {"folder": place})  # First kept, then made: a crash between the two loses nothing.
                os.makedirs(place)
                made.append(name)
                say({"type": "progress", "id": call, "machine": name, "event": "created", "address": "127.0.0.1"})
            hosts.append({"alias": name, "address": "127.0.0.1", "port": 2200 + number, "id": place})
    except (Cancelled, Failed, OSError):
        for name in made:  # What this call made, and not what it found.
            shutil.rmtree(os.path.join(root, name))
        raise
    return {"hosts": hosts, "made": made}


def destroy(call, params):
    experiment = params["environment"]["reservations"][0]["experiment"]
    shutil.rmtree(folder_of(experiment), ignore_errors=True)  # Nothing there is success.


def status(call, params):
    root = folder_of(params["environment"]["reservations"][0]["experiment"])
    names = sorted(os.listdir(root)) if os.path.isdir(root) else []
    return [{"name": name, "id": os.path.join(root, name), "state": "running"} for name in names]


def open_(call, params):
    config.update(params["config"]["extra"])
    if not os.path.isdir(config["folder"]):
        raise ValueError("the folder %r is not there" % config["folder"])


def nothing(call, params):
    return None


CALLS = {
    "open": open_,
    "init": init,
    "destroy": destroy,
    "status": status,
    "plan": nothing,  # `null` leaves it to what the document says.
    "before_preinstall": nothing,
    "after_preinstall": nothing,
}

while True:
    message = hear()
    if message["type"] == "hello":
        features = {"status": True, "proves_empty": True, "makes_machines": True}
        say({"type": "hello", "version": 1, "name": "directory", "keys": KEYS, "features": features})
    elif message["type"] == "call":
        call, method = message["id"], message["method"]
        try:
            if method not in CALLS:
                raise NotImplementedError("this provider has no %s" % method)
            say({"type": "result", "id": call, "value": CALLS[method](call, message["params"])})
        except Cancelled:
            say({"type": "error", "id": call, "error": {"kind": "cancelled", "message": "cancelled, all undone"}})
        except Failed as failed:
            say({"type": "error", "id": call, "error": failed.args[0]})
        except ValueError as error:
            say({"type": "error", "id": call, "error": {"kind": "config", "message": str(error)}})
        except NotImplementedError as error:
            say({"type": "error", "id": call, "error": {"kind": "unsupported", "message": str(error)}})
        except OSError as error:
            say({"type": "error", "id": call, "error": {"kind": "internal", "message": str(error)}})

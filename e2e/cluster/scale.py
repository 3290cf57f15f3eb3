#!/usr/bin/env python3
"""scale.py BINARY [NODES SENSORS POLICIES]: what a large cluster asks of the API server and of the controller.

Against a real API server: the watches of NODES nodes, each as a sensor opens them, and a controller whose SENSORS sensors
are one process here, with an address each. Prints requests by verb and resource, and memory.
"""
import asyncio
import hashlib
import json
import os
import re
import ssl
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from lab import ROOT, RUN, Failed, Report, apply, condition, expect, get, kubectl, until

API, PORT = "10.96.0.1", 9753
binary = sys.argv[1]
NODES, SENSORS, POLICIES = (int(text) for text in (sys.argv[2:] or (1000, 5000, 100)))
NAMESPACE, SERVICE = "scale", "sensors"


def memory(name):
    """Resident bytes of a daemon of the cluster."""
    pid = int((RUN / "pids" / name).read_text())
    return of_pid(pid)


def of_pid(pid):
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) * 1024


def requests():
    """Requests that the API server has counted, by verb and resource, of what this is about."""
    found = Counter()
    for line in kubectl("get", "--raw", "/metrics").splitlines():
        if line.startswith("apiserver_request_total{"):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
            part = f"/{labels['subresource']}" if labels.get("subresource") else ""
            found[f"{labels['verb']} {labels['resource']}{part}"] += float(line.rsplit(" ", 1)[1])
    return found


def told(before, what):
    after = requests()
    interesting = re.compile(r" (pods|pathpolicies|clusterpathpolicies|tokenreviews|endpointslices|events)")
    rows = {name: int(count - before[name]) for name, count in after.items() if count > before[name] and interesting.search(name)}
    print(f"  requests {what}:", flush=True)
    for name, count in sorted(rows.items()):
        print(f"    {count:8} {name}", flush=True)
    return rows


def watches_held():
    """Watches that the API server holds, by resource."""
    found = Counter()
    for line in kubectl("get", "--raw", "/metrics").splitlines():
        if line.startswith("apiserver_longrunning_requests{") and 'verb="WATCH"' in line:
            found[re.search(r'resource="([^"]*)"', line)[1]] += int(float(line.rsplit(" ", 1)[1]))
    return {name: found[name] for name in ("pods", "pathpolicies", "clusterpathpolicies")}


class Watches:
    """As many watches as sensors of so many nodes have: pods of the node, and both kinds of policy."""

    def __init__(self):
        self.open, self.events, self.refused = 0, 0, 0

    async def one(self, context, token, path):
        while not await self.attempt(context, token, path):
            # Too many at once, says the API server; a sensor tries again, too.
            self.refused += 1
            await asyncio.sleep(1)

    async def attempt(self, context, token, path):
        reader, writer = await asyncio.open_connection(API, 443, ssl=context, limit=1 << 22)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {API}\r\nAuthorization: Bearer {token}\r\nAccept: application/json\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 429 " in head.split(b"\r\n")[0]:
            writer.close()
            return False
        if b" 200 " not in head.split(b"\r\n")[0]:
            raise Failed(head.decode())
        self.open += 1
        while chunk := await reader.readline():
            self.events += chunk.count(b'"type":"')
        raise Failed("the API server ended a watch")

    async def all(self, context, token, ready, stop):
        tasks = []
        stream = "watch=true&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"
        for node in range(NODES):
            for path in (
                f"/api/v1/pods?fieldSelector=spec.nodeName%3Dnode-{node}&{stream}",
                f"/apis/pathwatch.dev/v1alpha1/pathpolicies?{stream}",
                f"/apis/pathwatch.dev/v1alpha1/clusterpathpolicies?{stream}",
            ):
                tasks.append(asyncio.create_task(self.one(context, token, path)))
            # The API server takes them as they come; a thousand handshakes at once would measure this machine's two cores.
            if node % 20 == 19:
                while self.open < len(tasks) and not any(task.done() for task in tasks):
                    await asyncio.sleep(0.02)
        for task in tasks:
            if task.done():
                task.result()
        ready.set()
        while not stop.is_set():
            await asyncio.sleep(0.2)
        for task in tasks:
            task.cancel()


class Sensors:
    """All sensors in one process: whatever address is asked, it answers as a sensor would, of the policies as they are."""

    def __init__(self):
        self.served, self.unchanged, self.body, self.tag = 0, 0, b"[]", ""
        self.addresses = set()

    def say(self, policies):
        said = [{"kind": one["kind"], "namespace": one["metadata"].get("namespace", ""), "name": one["metadata"]["name"], "uid": one["metadata"]["uid"],
                 "generation": one["metadata"]["generation"], "state": "active"} for one in policies]
        self.body = json.dumps(said).encode()
        self.tag = f'"{hashlib.sha256(self.body).hexdigest()}"'

    async def answer(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        assert "authorization: bearer" in head.lower(), head
        self.addresses.add(writer.get_extra_info("sockname")[0])
        self.served += 1
        if self.tag in head:
            self.unchanged += 1
            writer.write(b"HTTP/1.1 304 Not Modified\r\nconnection: close\r\n\r\n")
        else:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(self.body) + self.body)
        await writer.drain()
        writer.close()


def token_of(account):
    return kubectl("-n", NAMESPACE, "create", "token", account).strip()


def prepare():
    """the API server has the CRDs, the policies and the addresses of all sensors"""
    kubectl("apply", "--server-side", "-f", str(ROOT / "charts/pathwatch/files/crds.yaml"))
    kubectl("wait", "--for=condition=Established", "crd/pathpolicies.pathwatch.dev", "crd/clusterpathpolicies.pathwatch.dev", "--timeout=30s")
    kubectl("create", "namespace", NAMESPACE)
    kubectl("-n", NAMESPACE, "create", "serviceaccount", "sensor")
    kubectl("create", "clusterrole", "scale-sensor", "--verb=list,watch", "--resource=pods,namespaces,pathpolicies.pathwatch.dev,clusterpathpolicies.pathwatch.dev")
    kubectl("create", "clusterrolebinding", "scale-sensor", "--clusterrole=scale-sensor", f"--serviceaccount={NAMESPACE}:sensor")
    documents = []
    for n in range(POLICIES):
        documents.append({"apiVersion": "pathwatch.dev/v1alpha1", "kind": "ClusterPathPolicy", "metadata": {"name": f"p{n}"},
                          "spec": {"severity": "high", "paths": [f"/etc/p{n}/{m}" for m in range(10)]}})
    # Pods of nodes that are not there would be taken away.
    documents += [{"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"node-{n}"}} for n in range(10)]
    # As many pods of ten nodes as a node may have; the others' watches are as long, and find none.
    for n in range(1000):
        documents.append({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"pod{n}", "namespace": NAMESPACE},
                          "spec": {"nodeName": f"node-{n % 10}", "containers": [{"name": "c", "image": "x"}]}})
    addresses = [f"10.97.{n // 250}.{n % 250 + 1}" for n in range(SENSORS)]
    for start in range(0, SENSORS, 1000):
        documents.append({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                          "metadata": {"name": f"s{start}", "namespace": NAMESPACE, "labels": {"kubernetes.io/service-name": SERVICE}},
                          "endpoints": [{"addresses": [address], "nodeName": f"n{start + at}"} for at, address in enumerate(addresses[start : start + 1000])],
                          "ports": [{"name": "http", "port": PORT}]})
    for start in range(0, len(documents), 200):
        kubectl("create", "-f", "-", text="\n---\n".join(json.dumps(one) for one in documents[start : start + 200]))
    return f"{POLICIES} policies, 1000 pods, {SENSORS} endpoints"


async def measure(report):
    context = ssl.create_default_context(cafile=str(RUN / "pki/ca.crt"))
    sensors, watches = Sensors(), Watches()
    sensors.say(json.loads(await asyncio.to_thread(kubectl, "get", "clusterpathpolicies", "-o", "json"))["items"])
    server = await asyncio.start_server(sensors.answer, "0.0.0.0", PORT, backlog=4096)
    async with server:
        ready, stop = asyncio.Event(), asyncio.Event()
        before, used = await asyncio.to_thread(requests), memory("kube-apiserver")
        began = time.time()
        task = asyncio.create_task(watches.all(context, token_of("sensor"), ready, stop))
        done, _ = await asyncio.wait({task, asyncio.create_task(ready.wait())}, timeout=600, return_when=asyncio.FIRST_COMPLETED)
        if task in done:
            task.result()
        grew = memory("kube-apiserver") - used
        rows = await asyncio.to_thread(told, before, f"of {NODES} nodes' start")
        held = await asyncio.to_thread(watches_held)
        lists = {name: count for name, count in rows.items() if name.startswith("LIST") and count > 5}
        report(f"{watches.open} watches of {NODES} nodes ({time.time() - began:.0f} s); API server {used >> 20} MiB, {grew >> 20} more; "
               f"held: {held}; {watches.refused} were told to come again; lists: {lists or 'none'}", not lists and watches.open == 3 * NODES)

        before, events = await asyncio.to_thread(requests), watches.events
        config = RUN / "controller"
        config.mkdir(exist_ok=True)
        (config / "token").write_text("any")
        command = [binary, "controller", f"--namespace={NAMESPACE}", f"--service={SERVICE}", f"--port={PORT}", f"--token-file={config}/token"]
        environment = {**os.environ, "PATHWATCH__ENRICH__KUBECONFIG": str(RUN / "pki/admin.conf")}
        with open(config / "log", "w") as log:
            controller = subprocess.Popen(command, env=environment, stderr=log)
        try:
            began = time.time()
            programmed = lambda: all(one.get("status", {}).get("nodes") == f"{SENSORS}/{SENSORS}" for one in get("clusterpathpolicies")["items"])
            await asyncio.to_thread(until, "all policies on all nodes", programmed, 180)
            first = time.time() - began
            rows = await asyncio.to_thread(told, before, f"of the controller until all {POLICIES} policies say {SENSORS}/{SENSORS}")
            writes = rows.get("PATCH clusterpathpolicies/status", 0) + rows.get("APPLY clusterpathpolicies/status", 0)
            report(f"{SENSORS} sensors asked ({len(sensors.addresses)} addresses), {writes} status writes, {first:.0f} s; controller "
                   f"{of_pid(controller.pid) >> 20} MiB", writes <= 4 * POLICIES and len(sensors.addresses) == SENSORS)

            before, served, unchanged = await asyncio.to_thread(requests), sensors.served, sensors.unchanged
            await asyncio.to_thread(until, "another round", lambda: sensors.served >= served + SENSORS, 120)
            rows = await asyncio.to_thread(told, before, "of the controller in a round without news")
            writes = sum(count for name, count in rows.items() if "policies/status" in name)
            report(f"a round without news: {sensors.unchanged - unchanged} of {sensors.served - served} answers unchanged, {writes} writes; "
                   f"controller {of_pid(controller.pid) >> 20} MiB", writes == 0)

            before, events = await asyncio.to_thread(requests), watches.events
            edited = {"apiVersion": "pathwatch.dev/v1alpha1", "kind": "ClusterPathPolicy", "metadata": {"name": "p0"}, "spec": {"paths": ["/etc/new"]}}
            began = time.time()
            await asyncio.to_thread(apply, edited)
            sensors.say((await asyncio.to_thread(get, "clusterpathpolicies"))["items"])
            generation = (await asyncio.to_thread(get, "clusterpathpolicies", "p0"))["metadata"]["generation"]
            def again():
                found = get("clusterpathpolicies", "p0")
                return found["status"]["observedGeneration"] == generation and condition(found, "Programmed")["status"] == "True"
            await asyncio.to_thread(until, "the edited policy on all nodes", again, 120)
            took = time.time() - began
            rows = await asyncio.to_thread(told, before, "of one edit")
            writes = sum(count for name, count in rows.items() if "policies/status" in name)
            report(f"an edit is told of all {SENSORS} nodes after {took:.0f} s with {writes} writes; {watches.events - events} events to "
                   f"{NODES} nodes' watches; API server {memory('kube-apiserver') >> 20} MiB, controller {of_pid(controller.pid) >> 20} MiB", writes <= 5)
        finally:
            controller.terminate()
            controller.wait(30)
            stop.set()
        await task


if __name__ == "__main__":
    report = Report("scale")
    report.case(prepare)

    def line(text, is_so):
        def case():
            expect(text, is_so)
        case.__doc__ = text
        report.case(case)

    def whole():
        """all of it"""
        asyncio.run(measure(line))

    report.case(whole)
    report.end()

"""What the chart, the API server and the sensor make of bad input, and of those who mean no good."""
import json
import re
import time

from lab import (
    CHART, INSTALL, NS, RELEASE, alerts, apply, ask, at, condition, expect, get, helm, kubectl, on_node, pod, policy,
    sensor_pod, until, when,
)


def refusals():
    """helm and the API server refuse what is wrong, and say what to write instead"""
    template = lambda *more: helm("template", "x", str(CHART), *more, ok=False)
    for arguments, words in (
        ([], "cluster.name is missing"),
        (["--set", "cluster.name=a"], "--set 'kafka.brokers="),
        ([*INSTALL, "--set", "polcies.library=high"], "polcies"),
        ([*INSTALL, "--set", "securityProfile=none"], "securityProfile"),
        ([*INSTALL, "--set", "port=http"], "port"),
        ([*INSTALL, "--set", "logLevel=loud"], "logLevel"),
        ([*INSTALL, "--set", "kafka=null"], "kafka"),
        ([*INSTALL, "--set", "kafka.brokers={k:99999}"], "brokers"),
        ([*INSTALL, "--set", "kafka.brokers={10.96.0.1}"], "brokers"),
        ([*INSTALL, "--set", "kafka.sasl.mechanism=PLAIN"], "kafka.sasl.existingSecret"),
        ([*INSTALL, "--set", "kafka.tls.certificateKey=tls.crt"], "kafka.tls.existingSecret"),
        ([*INSTALL, "--set", "policies.overrides.x.exeptions={}"], "exeptions"),
    ):
        status, said = template(*arguments)
        expect(f"helm refuses {arguments}", status != 0 and words in said, said)
    for spec, words in (
        ({"subjects": "all"}, "namespace's pods only"),
        ({"files": "host"}, "namespace's pods only"),
        ({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "team-b"}}}, "its own namespace only"),
        ({"severity": "critical"}, "'high' at most"),
        ({"paths": []}, "paths"),
        ({"paths": ["etc/shadow"]}, "a path begins with /"),
        ({"paths": ["/x"] * 257}, "257"),
        ({"exceptions": [{}]}, "without a criterion"),
        ({"operations": ["look"]}, "Unsupported value"),
        ({"pathes": ["/x"]}, "unknown field"),
    ):
        document = policy("refused", "team-a", **{"paths": ["/x"], **spec})
        status, said = kubectl("apply", "-f", "-", text=json.dumps(document), ok=False)
        expect(f"the API server refuses {spec}", status != 0 and words in said, said)
    return "12 values, 10 policies"


def tenancy():
    """a tenant's policy says nothing of another namespace, nor of the host"""
    kubectl("create", "namespace", "team-b")
    apply(policy("greedy", "team-b", paths=["/etc/shadow", "/tmp/b", "/proc/**/b"]))
    apply(policy("marker", "team-b", paths=["/tmp/marker"]))
    until("Programmed", lambda: condition(get("pathpolicies", "marker", "team-b"), "Programmed")["status"] == "True")
    script = "cat /etc/shadow; touch /tmp/b /tmp/marker; exec sleep 100000"
    apply(pod("foreign", "team-a", script))
    apply(pod("own", "team-b", script))
    for name in ("foreign", "own"):
        until(f"{name}'s marker", lambda: alerts(rule__name="marker", kubernetes__pod__name=name))
    read = time.time()
    on_node("cat", "/etc/shadow")
    until("the host's own read", lambda: [
        record for record in alerts(rule__name="shadow-read") if at(record, "kubernetes__pod__name") is None and when(record) > read - 1])
    named = {at(record, "kubernetes__pod__name") for record in alerts(rule__name="greedy")}
    expect("who raised it", named == {"own"}, named)
    status, said = kubectl("--as=ann", "-n", "team-a", "get", "pathpolicies", ok=False)
    expect("a stranger", status != 0 and "forbidden" in said, said)


def quota():
    """of more than 64 policies in a namespace the youngest are refused, and let in when there is room"""
    kubectl("create", "namespace", "crowd")
    many = [policy(f"p{n:02}", "crowd", paths=[f"/crowd/{n}"]) for n in range(66)]
    apply("\n---\n".join(json.dumps(one) for one in many))

    def refused():
        found = get("pathpolicies", namespace="crowd")["items"]
        told = [one for one in found if condition(one, "Accepted")["reason"] == "QuotaExceeded"]
        return {one["metadata"]["name"] for one in told} if all("status" in one for one in found) else None

    first = until("two refusals", lambda: len(refused() or ()) == 2 and refused(), 120)
    kubectl("-n", "crowd", "delete", "pathpolicy", "p00")
    until("room for one", lambda: len(refused() or ()) == 1, 120)
    kubectl("delete", "namespace", "crowd", "--wait=false")
    return f"refused: {sorted(first)}"


def flood():
    """a namespace full of policies costs no other its own, nor its status"""
    kubectl("create", "namespace", "mob")
    many = [policy(f"m{n:04}", "mob", paths=[f"/mob/{n}"]) for n in range(600)]
    for start in range(0, len(many), 200):
        kubectl("create", "-f", "-", text="\n---\n".join(json.dumps(one) for one in many[start : start + 200]))
    told = apply(policy("calm", "team-b", paths=["/tmp/calm"]))
    until("its status", lambda: condition(get("pathpolicies", "calm", "team-b"), "Programmed")["status"] == "True")
    took = time.time() - told
    apply(pod("calm", "team-b", "touch /tmp/calm; exec sleep 100000"))
    until("its alert", lambda: alerts(rule__name="calm"))
    kubectl("delete", "namespace", "mob", "--wait=false")
    return f"Programmed after {took:.1f} s beside 600"


def rights():
    """both service accounts may do what they must, and no more"""
    account = f"system:serviceaccount:{NS}:{RELEASE}"
    for name in (account, f"{account}-controller"):
        print(f"  kubectl auth can-i --list --as={name}", flush=True)
        listed = kubectl("auth", "can-i", "--list", f"--as={name}")
        print("\n".join("    " + line for line in listed.splitlines() if "/" not in line.split()[0] or "pathwatch" in line), flush=True)

    def may(who, verb, what):
        resource, _, part = what.partition("/")
        more = [f"--subresource={part}"] if part else []
        return kubectl("auth", "can-i", verb, resource, f"--as={who}", "-A", *more, ok=False)[0] == 0

    for verb, what, sensor, controller in (
        ("watch", "pods", True, False),
        ("list", "clusterpathpolicies.pathwatch.dev", True, True),
        ("create", "tokenreviews.authentication.k8s.io", True, False),
        ("patch", "pathpolicies.pathwatch.dev/status", False, True),
        ("patch", "pathpolicies.pathwatch.dev", False, False),
        ("create", "clusterpathpolicies.pathwatch.dev", False, False),
        ("get", "secrets", False, False),
        ("list", "secrets", False, False),
        ("get", "configmaps", False, False),
        ("create", "pods", False, False),
        ("create", "pods/exec", False, False),
        ("get", "nodes/proxy", False, False),
        ("impersonate", "users", False, False),
    ):
        for who, want in ((account, sensor), (f"{account}-controller", controller)):
            expect(f"{who} {verb} {what}", may(who, verb, what) == want, f"should be {want}")


def refused_rights():
    """without rights the sensor goes on with what it knows, says what it needs, and recovers"""
    binding = get("clusterrolebinding", RELEASE)
    kubectl("delete", "clusterrolebinding", RELEASE)
    kubectl("-n", NS, "rollout", "restart", f"daemonset/{RELEASE}")
    kubectl("-n", NS, "rollout", "status", f"daemonset/{RELEASE}", "--timeout=120s")
    log = lambda: kubectl("-n", NS, "logs", sensor_pod()["metadata"]["name"])
    # Of the two kinds of policy one is named, whichever was refused last.
    until("the remedy", lambda: re.search("allow the service account to list and watch (cluster)?pathpolicies", log()))
    until("Degraded", lambda: condition(get("pathpolicies", "passwords", "team-a"), "Degraded")["status"] == "True"
          or condition(get("pathpolicies", "passwords", "team-a"), "Programmed")["status"] == "False", 90)
    for field in ("uid", "resourceVersion", "creationTimestamp", "managedFields"):
        binding["metadata"].pop(field, None)
    # As helm's own: it would not overwrite what somebody else has written.
    kubectl("apply", "--server-side", "--field-manager=helm", "-f", "-", text=json.dumps(binding))
    until("Programmed", lambda: condition(get("pathpolicies", "passwords", "team-a"), "Programmed")["status"] == "True", 120)


def endpoint():
    """only the controller may read the state of policies, and nobody learns a pattern from the sensor's port"""
    expect("no token", ask("/policies").endswith("401"))
    for who, audience, want in (
        (f"{RELEASE}-controller", "pathwatch-sensor", "200"),
        (f"{RELEASE}-controller", "other", "403"),
        (RELEASE, "pathwatch-sensor", "403"),
    ):
        token = kubectl("-n", NS, "create", "token", who, f"--audience={audience}").strip()
        until(f"{want} for {who}", lambda: ask("/policies", "-H", f"Authorization: Bearer {token}").endswith(want), 20)
    text = ask("/metrics") + ask("/healthz")
    expect("metrics", "pathwatch_policy_in_force" in text and "# EOF" in text, text)
    expect("no pattern and no policy's name", "/etc/shadow" not in text and "passwords" not in text, text)


def pod_security():
    """in a namespace that enforces a stricter level, NOTES says what to do, and so does the DaemonSet"""
    kubectl("create", "namespace", "strict")
    kubectl("label", "namespace", "strict", "pod-security.kubernetes.io/enforce=baseline")
    said = helm("install", "third", str(CHART), "-n", "strict", *INSTALL, "--set", "crds.enabled=false")
    expect("NOTES", "kubectl label namespace strict pod-security.kubernetes.io/enforce=privileged" in said, said)
    until("the Event", lambda: "violates PodSecurity" in kubectl("-n", "strict", "describe", "daemonset"))
    helm("uninstall", "third", "-n", "strict")

//! What stands in an object's status. Pure: the same findings make the same status.
use serde_json::{Value, json};

use super::sensors::{NAMED, Reports};
use crate::policy::{InForce, State, shown};

/// Most characters of a message, and of a reason on a node.
const MESSAGE: usize = 4000;
const REASON: usize = 1000;

/// What is known without any sensor, beside what was known of them before.
pub(super) fn accepted(verdict: &InForce, known: Option<&Value>) -> Value {
    let observed = known.and_then(|known| known["observedGeneration"].as_i64());
    let same = observed == Some(verdict.generation);
    // How many nodes had an earlier generation says nothing of this one.
    let mut status = known.filter(|_| same).cloned().unwrap_or_else(|| json!({}));
    let mut conditions = vec![acceptance(verdict)];
    if same {
        conditions.extend(condition_of(known, "Programmed").cloned());
    } else {
        conditions.push(condition("Programmed", false, "Pending", "the sensors have not been asked yet"));
    }
    conditions.extend(condition_of(known, "Degraded").cloned());
    set(&mut status, "observedGeneration", json!(verdict.generation));
    with_conditions(status, conditions, verdict.generation, known)
}

/// All of it.
pub(super) fn of(verdict: &InForce, reports: &Reports, known: Option<&Value>) -> Value {
    let counts = reports.of(&verdict.reference, verdict.generation);
    let (programmed, sensors) = (counts.programmed, reports.sensors);
    let pending = sensors.saturating_sub(programmed + counts.failing + reports.silent);
    let on = format!("in force on {programmed} of {sensors} nodes");
    let good = matches!(verdict.state, State::Active | State::Suspended);
    let programming = if sensors == 0 {
        condition("Programmed", false, "NoSensors", "no sensor is running; see the DaemonSet")
    } else if programmed == sensors && verdict.state == State::Suspended {
        condition("Programmed", true, "Suspended", "switched off by spec.suspend")
    } else if programmed == sensors {
        condition("Programmed", true, "Programmed", &on)
    } else if !good {
        let earlier = if counts.stale > 0 { "an earlier one is" } else { "nor is any other" };
        condition("Programmed", false, "NotAccepted", &format!("this generation is not in force; {earlier}"))
    } else if pending > 0 {
        condition("Programmed", false, "Pending", &format!("{on}; {pending} have not taken it in yet"))
    } else {
        condition("Programmed", false, "Degraded", &on)
    };
    let named: Vec<&(String, String)> = counts.named.iter().chain(&reports.silent_named).take(NAMED).collect();
    let degraded = match named.first() {
        Some((node, why)) => {
            let failing = counts.failing + reports.silent;
            condition(
                "Degraded",
                true,
                "NotOnAllNodes",
                &format!("{failing} of {sensors} nodes, such as {node}: {why}"),
            )
        }
        None => condition("Degraded", false, "AsExpected", "every sensor that was asked is well"),
    };
    let failing: Vec<Value> =
        named.iter().map(|(node, why)| json!({"node": cut(node, 253), "reason": cut(why, REASON)})).collect();
    let status = json!({
        "observedGeneration": verdict.generation,
        "nodes": format!("{programmed}/{sensors}"),
        "programmed": programmed,
        "desired": sensors,
        "failing": failing,
    });
    with_conditions(status, vec![acceptance(verdict), programming, degraded], verdict.generation, known)
}

/// Whether nothing is expected to change by itself.
pub(super) fn is_settled(status: &Value) -> bool {
    let reason = condition_of(Some(status), "Programmed").and_then(|condition| condition["reason"].as_str());
    !matches!(reason, None | Some("Pending" | "NoSensors" | "Degraded"))
}

/// The condition of this kind.
pub(super) fn condition_of<'a>(status: Option<&'a Value>, kind: &str) -> Option<&'a Value> {
    status?.get("conditions")?.as_array()?.iter().find(|condition| condition["type"] == kind)
}

fn acceptance(verdict: &InForce) -> Value {
    match verdict.state {
        State::Active => condition("Accepted", true, "Valid", "the policy is good"),
        State::Suspended => condition("Accepted", true, "Valid", "the policy is good, and suspended"),
        State::Stale | State::Failed => condition("Accepted", false, "Invalid", &verdict.reason),
        State::Refused => condition("Accepted", false, "QuotaExceeded", &verdict.reason),
    }
}

fn condition(kind: &str, is: bool, reason: &str, message: &str) -> Value {
    let status = if is { "True" } else { "False" };
    json!({"type": kind, "status": status, "reason": reason, "message": cut(message, MESSAGE)})
}

/// Adds what is the same of all conditions; the time is that of the last change from or to True.
fn with_conditions(
    mut status: Value,
    mut conditions: Vec<Value>,
    generation: i64,
    known: Option<&Value>,
) -> Value {
    for condition in &mut conditions {
        let kind = condition["type"].as_str().unwrap_or_default().to_owned();
        let before = condition_of(known, &kind).filter(|before| before["status"] == condition["status"]);
        let since = before.and_then(|before| before["lastTransitionTime"].as_str()).map(str::to_owned);
        set(condition, "lastTransitionTime", json!(since.unwrap_or_else(now)));
        set(condition, "observedGeneration", json!(generation));
    }
    set(&mut status, "conditions", json!(conditions));
    status
}

fn set(object: &mut Value, field: &str, value: Value) {
    if let Some(object) = object.as_object_mut() {
        object.insert(field.to_owned(), value);
    }
}

fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn cut(text: &str, limit: usize) -> String {
    // Terminals show it: an author's text must not move their cursors.
    shown(text).chars().take(limit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Kind, Reference};

    fn verdict(generation: i64, state: State) -> InForce {
        let reference =
            Reference { kind: Kind::PathPolicy, namespace: "a".into(), name: "p".into(), uid: String::new() };
        InForce { reference, generation, state, reason: "spec.paths: bad".into() }
    }

    fn reports(said: &[Option<(i64, State)>]) -> Reports {
        let mut reports = Reports::default();
        for (n, said) in said.iter().enumerate() {
            let node = format!("n{n}");
            match said {
                Some((generation, state)) => reports.add(&node, Ok(&[verdict(*generation, *state)])),
                None => reports.add(&node, Err("connection refused".into())),
            }
        }
        reports
    }

    fn words(status: &Value) -> String {
        let conditions = status["conditions"].as_array().unwrap().iter();
        let words = conditions.map(|c| format!("{}={}/{}", c["type"], c["status"], c["reason"]).replace('"', ""));
        format!("{} {}", status["nodes"].as_str().unwrap_or("-"), words.collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn the_status_says_what_sensors_say_of_the_very_generation() {
        use State::{Active, Failed, Refused, Stale, Suspended};
        for (own, said, want) in [
            (Active, &[][..], "0/0 Accepted=True/Valid Programmed=False/NoSensors Degraded=False/AsExpected"),
            (
                Active,
                &[Some((2, Active)); 3],
                "3/3 Accepted=True/Valid Programmed=True/Programmed Degraded=False/AsExpected",
            ),
            (
                Active,
                &[Some((2, Active)), Some((1, Active))],
                "1/2 Accepted=True/Valid Programmed=False/Pending Degraded=False/AsExpected",
            ),
            (
                Active,
                &[Some((2, Active)), None],
                "1/2 Accepted=True/Valid Programmed=False/Degraded Degraded=True/NotOnAllNodes",
            ),
            (
                Active,
                &[Some((2, Active)), Some((2, Failed))],
                "1/2 Accepted=True/Valid Programmed=False/Degraded Degraded=True/NotOnAllNodes",
            ),
            (
                Suspended,
                &[Some((2, Suspended))],
                "1/1 Accepted=True/Valid Programmed=True/Suspended Degraded=False/AsExpected",
            ),
            (
                Failed,
                &[Some((2, Stale))],
                "0/1 Accepted=False/Invalid Programmed=False/NotAccepted Degraded=True/NotOnAllNodes",
            ),
            (
                Refused,
                &[Some((2, Refused))],
                "0/1 Accepted=False/QuotaExceeded Programmed=False/NotAccepted Degraded=True/NotOnAllNodes",
            ),
        ] {
            assert_eq!(words(&of(&verdict(2, own), &reports(said), None)), want, "{own:?} {said:?}");
        }
    }

    #[test]
    fn a_condition_keeps_its_time_until_it_changes_and_at_most_ten_nodes_are_named() {
        let mut known = of(&verdict(1, State::Active), &reports(&[Some((1, State::Active))]), None);
        for condition in known["conditions"].as_array_mut().unwrap() {
            condition["lastTransitionTime"] = json!("2020-01-01T00:00:00Z");
        }
        let status = of(&verdict(2, State::Active), &reports(&[None; 5000]), Some(&known));
        let since =
            |kind: &str| condition_of(Some(&status), kind).unwrap()["lastTransitionTime"].as_str().unwrap();
        assert_eq!(since("Accepted"), "2020-01-01T00:00:00Z");
        assert_ne!(since("Programmed"), "2020-01-01T00:00:00Z");
        assert_eq!(status["failing"].as_array().unwrap().len(), NAMED);
        assert!(status.to_string().len() < 16 << 10, "{}", status.to_string().len());
    }

    #[test]
    fn before_the_sensors_are_asked_the_acceptance_is_told_and_what_was_known_stays() {
        let fresh = accepted(&verdict(1, State::Failed), None);
        assert_eq!(words(&fresh), "- Accepted=False/Invalid Programmed=False/Pending");
        let known = of(&verdict(1, State::Active), &reports(&[Some((1, State::Active))]), None);
        assert_eq!(accepted(&verdict(1, State::Active), Some(&known)), known);
        assert!(is_settled(&known) && !is_settled(&accepted(&verdict(2, State::Active), Some(&known))));
    }
}

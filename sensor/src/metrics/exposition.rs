//! The counters as OpenMetrics text, for Prometheus. One line of the tables is one series; all of them are there from the
//! start, at zero.
use std::{fmt::Error, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet, text::encode},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};

use sensor_ebpf::decide::Reason;

use super::{BOUNDS, Counter, Gauge, Histogram, Metrics, Program, Queue};
use crate::event::Missing;

/// The form of [`text`], for the header `Content-Type`.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics as they are now.
#[must_use]
pub fn text(metrics: &Arc<Metrics>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(metrics.clone()));
    let mut text = String::new();
    // Writing to a String does not fail.
    encode(&mut text, &registry).ok();
    text
}

/// Series of one name that differ by a label.
struct Family<'a, T> {
    name: &'a str,
    help: &'a str,
    label: &'a str,
    series: Vec<(&'a str, &'a T)>,
}

impl Metrics {
    /// Name without `_total`, help, and the counter.
    fn counters(&self) -> [(&'static str, &'static str, &Counter); 10] {
        [
            ("capture_events", "Opens that reached user space", &self.captured),
            ("capture_numbered", "Opens that the kernel side numbered", &self.numbered),
            ("capture_opens_lost", "Opens that the kernel could not hand over", &self.opens_lost),
            ("capture_processes_lost", "Records of processes and cgroups that were lost", &self.processes_lost),
            ("capture_skipped", "Runs of a program that the kernel skipped: at most so many opens", &self.skipped),
            ("capture_undecodable", "Records that could not be read", &self.undecodable),
            ("enrich_unnamed", "Events of containers whose name is not known", &self.unnamed),
            ("enrich_moved", "Events of processes that left their container's cgroup", &self.moved),
            ("enrich_held", "Events that waited for the API server to tell of their pod", &self.held),
            (
                "matcher_namespace_unknown",
                "Times that a PathPolicy could not decide, the namespace being unknown",
                &self.namespace_unknown,
            ),
        ]
    }

    fn gauges(&self) -> [(&'static str, &'static str, &Gauge); 11] {
        [
            ("enrich_processes", "Processes that are remembered", &self.processes),
            ("enrich_cgroups", "Cgroups that are remembered", &self.cgroups),
            ("enrich_pods", "Pods that are remembered", &self.pods),
            ("policy_in_force", "Policies in force", &self.policies),
            ("policy_stale", "Policies of which only the last good version is in force", &self.policies_stale),
            ("policy_errors", "Faults for which policies are not used as they stand", &self.policy_errors),
            ("ship_spool_bytes", "Bytes of records in the spool", &self.spool_bytes),
            ("ship_spool_max_bytes", "Bytes that they may be; 0 without a spool", &self.spool_max_bytes),
            ("ship_spool_alerts", "Alerts in the spool, not acknowledged yet", &self.spool_alerts),
            ("ship_degraded", "1 while the sink does not acknowledge", &self.sink_degraded),
            (
                "ship_certificate_expires_seconds",
                "When the certificate for Kafka expires, in seconds since 1970; 0 without one",
                &self.certificate_expires,
            ),
        ]
    }

    fn families(&self) -> [Family<'_, Counter>; 5] {
        [
            Family {
                name: "capture_passed",
                help: "Opens that the kernel's filter let through, by what let them",
                label: "reason",
                series: Reason::WORDS.into_iter().zip(&self.passed).collect(),
            },
            Family {
                name: "enrich_events",
                help: "Events by how much is known of who made them",
                label: "enrichment",
                series: vec![("complete", &self.complete), ("partial", &self.partial)],
            },
            Family {
                name: "enrich_missing",
                help: "What was not known of partial events",
                label: "what",
                series: Missing::ALL.iter().map(|what| (what.word(), self.missing(*what))).collect(),
            },
            Family {
                name: "matcher_events",
                help: "Events by whether some policy wanted them",
                label: "outcome",
                series: vec![("matched", &self.matched), ("unmatched", &self.unmatched)],
            },
            Family {
                name: "ship_alerts",
                help: "Alerts by what became of them; fired is all of them",
                label: "outcome",
                series: vec![
                    ("fired", &self.fired),
                    ("shipped", &self.shipped),
                    ("suppressed", &self.suppressed),
                    ("limited", &self.limited),
                    ("lost", &self.alerts_lost),
                ],
            },
        ]
    }

    fn histograms(&self) -> [(&'static str, &'static str, &Histogram); 2] {
        [
            ("enrich_hold_seconds", "How long events waited for the API server", &self.hold_seconds),
            ("ship_delivery_seconds", "From an open to the sink's acknowledgement", &self.delivery_seconds),
        ]
    }
}

/// Policies that have a series each: who writes policies must not choose how many series there are.
const POLICIES: usize = 200;
/// The series of all others.
const OTHERS: &str = "(others)";

/// Name and help of a metric, and its number of something.
type Series<T, N> = (&'static str, &'static str, fn(&T) -> N);

/// Metrics of each program.
const PROGRAMS: [Series<Program, f64>; 2] = [
    (
        "capture_program_seconds",
        "Time that a program of the kernel side ran; 0 unless kernel.bpf_stats_enabled is set",
        |program| program.nanoseconds.get() as f64 / 1e9,
    ),
    (
        "capture_program_runs",
        "How often a program of the kernel side ran; 0 unless kernel.bpf_stats_enabled is set",
        |program| program.runs.get() as f64,
    ),
];

/// Metrics of each queue.
const QUEUES: [Series<Queue, u64>; 2] = [
    ("queue_length", "What is in the queue that a stage fills", |queue| queue.length),
    ("queue_capacity", "What the queue may hold that a stage fills", |queue| queue.capacity),
];

impl Metrics {
    /// Alerts by policy, those of PathPolicies together: their names are their namespaces' business.
    fn policies_apart(&self) -> Vec<(String, u64)> {
        let (mut apart, mut others) = (Vec::new(), self.hits.others());
        for (policy, count) in self.hits.each() {
            if policy.contains('/') || apart.len() >= POLICIES {
                others += count;
            } else {
                apart.push((policy, count));
            }
        }
        apart.push((OTHERS.to_owned(), others));
        apart
    }
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut describe =
            |name: &str, help: &str, kind, write: &dyn Fn(MetricEncoder<'_>) -> Result<(), Error>| {
                let name = format!("pathwatch_{name}");
                write(encoder.encode_descriptor(&name, help, None, kind)?)
            };
        for (name, help, counter) in self.counters() {
            describe(name, help, MetricType::Counter, &|line| ConstCounter::new(counter.get()).encode(line))?;
        }
        for (name, help, gauge) in self.gauges() {
            let value = i64::try_from(gauge.get()).unwrap_or(i64::MAX);
            describe(name, help, MetricType::Gauge, &|line| ConstGauge::new(value).encode(line))?;
        }
        for Family { name, help, label, series } in self.families() {
            describe(name, help, MetricType::Counter, &|mut lines| {
                series.iter().try_for_each(|(value, counter)| {
                    let labels = [(label, *value)];
                    ConstCounter::new(counter.get()).encode(lines.encode_family(&labels)?)
                })
            })?;
        }
        let help = "Alerts of policies of the cluster and of files; of those of namespaces, together";
        let hits = self.policies_apart();
        describe("policy_alerts", help, MetricType::Counter, &|mut lines| {
            hits.iter().try_for_each(|(policy, count)| {
                ConstCounter::new(*count).encode(lines.encode_family(&[("policy", policy.as_str())])?)
            })
        })?;
        for (name, help, value) in PROGRAMS {
            describe(name, help, MetricType::Counter, &|mut lines| {
                self.programs.each().try_for_each(|program| {
                    ConstCounter::new(value(program))
                        .encode(lines.encode_family(&[("program", program.name.as_str())])?)
                })
            })?;
        }
        for (name, help, value) in QUEUES {
            describe(name, help, MetricType::Gauge, &|mut lines| {
                self.queues.each().try_for_each(|queue| {
                    let number = i64::try_from(value(&queue)).unwrap_or(i64::MAX);
                    ConstGauge::new(number).encode(lines.encode_family(&[("stage", queue.name.as_str())])?)
                })
            })?;
        }
        let help = "How each way to a file was seen by the self-test: 0 not tried, 1 right, 2 marked, 3 not seen, 4 wrong, 5 lost";
        describe("coverage", help, MetricType::Gauge, &|mut lines| {
            self.coverage.each().try_for_each(|(case, gauge)| {
                let value = i64::try_from(gauge.get()).unwrap_or(i64::MAX);
                ConstGauge::new(value).encode(lines.encode_family(&[("case", case)])?)
            })
        })?;
        for (name, help, histogram) in self.histograms() {
            let counts = histogram.get();
            let bounds = BOUNDS.iter().copied().chain([f64::INFINITY]);
            let buckets: Vec<(f64, u64)> = bounds.zip(counts.iter().copied()).collect();
            describe(name, help, MetricType::Histogram, &|mut line| {
                line.encode_histogram::<NoLabelSet>(histogram.seconds(), counts.iter().sum(), &buckets, None)
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_series_is_there_from_the_start_and_says_what_was_counted() {
        let metrics = Arc::new(Metrics::default());
        let before = text(&metrics);
        for line in [
            "pathwatch_ship_alerts_total{outcome=\"fired\"} 0",
            "pathwatch_enrich_missing_total{what=\"pod\"} 0",
            "pathwatch_ship_delivery_seconds_bucket{le=\"+Inf\"} 0",
            "pathwatch_capture_passed_total{reason=\"name\"} 0",
            "pathwatch_policy_in_force 0",
        ] {
            assert!(before.lines().any(|found| found == line), "{line} is not in\n{before}");
        }
        metrics.fired.add(3);
        metrics.policies.set(7);
        metrics.delivery_seconds.observe(Duration::from_millis(30));
        metrics.delivery_seconds.observe(Duration::from_secs(100));
        let after = text(&metrics);
        for line in [
            "pathwatch_ship_alerts_total{outcome=\"fired\"} 3",
            "pathwatch_policy_in_force 7",
            "pathwatch_ship_delivery_seconds_bucket{le=\"0.025\"} 0",
            "pathwatch_ship_delivery_seconds_bucket{le=\"0.05\"} 1",
            "pathwatch_ship_delivery_seconds_bucket{le=\"+Inf\"} 2",
            "pathwatch_ship_delivery_seconds_sum 100.03",
            "# EOF",
        ] {
            assert!(after.lines().any(|found| found == line), "{line} is not in\n{after}");
        }
        let series = |text: &str| text.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(series(&before), series(&after));
    }
}

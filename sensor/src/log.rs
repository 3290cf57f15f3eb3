//! The log on standard error, since standard output is alerts and nothing else: structured, so many lines of one place of the code and no more, its level changed while the process runs.
use std::{
    collections::HashMap,
    io::IsTerminal as _,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tracing::{Event, Metadata, Subscriber, callsite::Identifier, level_filters::LevelFilter};
use tracing_subscriber::{
    EnvFilter, Layer as _, Registry,
    layer::{Context, Filter, SubscriberExt as _},
    reload,
    util::SubscriberInitExt as _,
};

/// What the sensor says of itself.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub level: String,
    /// `auto` is text on a terminal and JSON lines otherwise.
    pub format: Format,
}

impl Default for Config {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: Format::Auto }
    }
}

/// Forms of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Text on a terminal, JSON lines otherwise.
    Auto,
    /// For a person.
    Text,
    /// For a program.
    Json,
}

/// Lines that one place of the code may write at once, and how long each takes to come back.
const BURST: u32 = 50;
const EACH: Duration = Duration::from_millis(200);

/// The log of this process.
struct Log {
    level: reload::Handle<EnvFilter, Registry>,
    chosen: Mutex<Chosen>,
    bounded: Bounded,
}

/// The level that was chosen for good, and how often it was changed: what was chosen for a time ends with the next change.
struct Chosen {
    level: String,
    change: u64,
}

static LOG: OnceLock<Log> = OnceLock::new();

/// What a level lets through, if it is one.
fn filter(level: &str) -> Result<EnvFilter, String> {
    // Of an empty one tracing makes `error`.
    let is_level = |word: &str| !word.is_empty() && word.parse::<LevelFilter>().is_ok();
    let known = |part: &str| part.rsplit('=').next().is_some_and(is_level);
    // What kube's watcher warns of, a notice tells with the remedy.
    let whole = format!("kube_runtime::watcher=error,{level}");
    let found = EnvFilter::try_new(whole).ok().filter(|_| level.split(',').all(known));
    found.ok_or_else(|| format!("log.level is '{level}'; it must be error, warn, info, debug or trace"))
}

/// Refuses what is no level.
///
/// # Errors
/// Says what one is.
pub fn check(level: &str) -> Result<(), String> {
    filter(level).map(drop)
}

/// Begins the log.
///
/// # Errors
/// When the level is none, or there is a log already.
pub fn start(config: &Config) -> Result<(), String> {
    let (level, handle) = reload::Layer::new(filter(&config.level)?);
    let terminal = std::io::stderr().is_terminal();
    let color = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(color);
    let bounded = Bounded::default();
    let lines = match config.format {
        Format::Json => lines.json().with_filter(bounded.clone()).boxed(),
        Format::Auto if !terminal => lines.json().with_filter(bounded.clone()).boxed(),
        Format::Auto | Format::Text => lines.with_target(false).with_filter(bounded.clone()).boxed(),
    };
    let started = Registry::default().with(level).with(lines).try_init();
    started.map_err(|why| format!("cannot start the log: {why}"))?;
    let chosen = Mutex::new(Chosen { level: config.level.clone(), change: 0 });
    LOG.get_or_init(|| Log { level: handle, chosen, bounded });
    Ok(())
}

/// Changes the level from now on, or for a time; returns what it is for good, or was.
///
/// # Errors
/// When it is none.
pub fn set(level: &str, for_a_time: Option<Duration>) -> Result<String, String> {
    let log = LOG.get().ok_or("there is no log")?;
    let (before, change) = log.choose(level, for_a_time.is_none())?;
    tracing::info!(level, before, "the log's level is changed");
    if let Some(time) = for_a_time {
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            log.end(change);
        });
    }
    Ok(before)
}

impl Log {
    /// Takes this level; returns the one that was chosen for good before, and the number of this change.
    fn choose(&self, level: &str, for_good: bool) -> Result<(String, u64), String> {
        let filter = filter(level)?;
        let mut chosen = self.chosen.lock().unwrap_or_else(PoisonError::into_inner);
        self.level.reload(filter).map_err(|why| why.to_string())?;
        chosen.change += 1;
        let before = chosen.level.clone();
        if for_good {
            level.clone_into(&mut chosen.level);
        }
        Ok((before, chosen.change))
    }

    /// Goes back to what was chosen for good, unless there was another change after this one.
    fn end(&self, change: u64) {
        let chosen = self.chosen.lock().unwrap_or_else(PoisonError::into_inner);
        let back = filter(&chosen.level).ok().filter(|_| chosen.change == change);
        if back.is_some_and(|filter| self.level.reload(filter).is_ok()) {
            tracing::info!(level = chosen.level, "the log's level is what it was");
        }
    }
}

/// Says how many lines were left out since it was asked last.
pub fn tell_left_out() {
    let Some(log) = LOG.get() else { return };
    for (place, lines) in log.bounded.left_out() {
        tracing::warn!(place, lines, "lines were left out of the log: there were too many of this kind");
    }
}

/// Lets so many lines of each place of the code through.
#[derive(Clone, Default)]
struct Bounded(Arc<Mutex<HashMap<Identifier, Place>>>);

/// A place of the code that writes to the log. Of these there are as many as this program has.
struct Place {
    name: String,
    /// When it will have all of its burst again.
    full_at: Instant,
    left_out: u64,
}

impl Bounded {
    fn admits(&self, what: &Metadata<'_>, now: Instant) -> bool {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = places.entry(what.callsite()).or_insert_with(|| {
            let name = format!("{}:{}", what.file().unwrap_or_default(), what.line().unwrap_or_default());
            Place { name, full_at: now, left_out: 0 }
        });
        let full_at = place.full_at.max(now) + EACH;
        if full_at > now + EACH * BURST {
            place.left_out += 1;
            return false;
        }
        place.full_at = full_at;
        true
    }

    fn left_out(&self) -> Vec<(String, u64)> {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let some = places.values_mut().filter(|place| place.left_out > 0);
        some.map(|place| (place.name.clone(), std::mem::take(&mut place.left_out))).collect()
    }
}

impl<S: Subscriber> Filter<S> for Bounded {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        // Notices are of many kinds and of one place; that they are few is seen to there.
        event.metadata().target() == crate::notice::TARGET || self.admits(event.metadata(), Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_level_is_refused() {
        for level in ["error", "debug", "sensor=trace", "info,hyper=debug"] {
            assert!(filter(level).is_ok(), "{level}");
        }
        for level in ["", "loud", "info,", "sensor=loud"] {
            assert!(filter(level).is_err(), "{level}");
        }
    }

    #[test]
    fn what_was_chosen_for_a_time_ends_with_it_and_leaves_what_was_chosen_for_good() {
        let (_layer, level) = reload::Layer::new(filter("info").unwrap());
        let chosen = Mutex::new(Chosen { level: "info".to_owned(), change: 0 });
        let log = Log { level, chosen, bounded: Bounded::default() };
        let now = || log.level.with_current(ToString::to_string).unwrap();
        let is = |level: &str| now() == filter(level).unwrap().to_string();
        let (_, first) = log.choose("debug", false).unwrap();
        let (before, second) = log.choose("trace", false).unwrap();
        assert!(is("trace") && before == "info");
        // The first is over already; the second ends with what was before both.
        log.end(first);
        assert!(is("trace"));
        log.end(second);
        assert!(is("info"));
        let (_, third) = log.choose("debug", false).unwrap();
        log.choose("warn", true).unwrap();
        log.end(third);
        assert!(is("warn"));
        assert!(log.choose("loud", true).is_err() && is("warn"));
    }

    /// Counts what gets through.
    #[derive(Clone, Default)]
    struct Count(Arc<Mutex<Vec<u32>>>);

    impl<S: Subscriber> tracing_subscriber::Layer<S> for Count {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            self.0.lock().unwrap().push(event.metadata().line().unwrap());
        }
    }

    #[test]
    fn a_flood_from_one_place_is_bounded_counted_and_keeps_no_other_from_writing() {
        let (bounded, count) = (Bounded::default(), Count::default());
        let subscriber = Registry::default().with(count.clone().with_filter(bounded.clone()));
        tracing::subscriber::with_default(subscriber, || {
            (0..10_000).for_each(|n| tracing::warn!(n, "flood"));
            tracing::warn!("another");
        });
        let lines = count.0.lock().unwrap().clone();
        let flood = lines.iter().filter(|line| **line == lines[0]).count();
        // The flood may last as long as a few lines take to come back.
        assert!((BURST as usize..200).contains(&flood), "{flood}");
        assert_eq!(lines.len(), flood + 1);
        let told = bounded.left_out();
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].1, 10_000 - flood as u64);
        assert!(told[0].0.starts_with("sensor/src/log.rs:"), "{told:?}");
        assert!(bounded.left_out().is_empty());
    }
}

//! A token bucket.
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// How many, in the long run and at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// In the long run.
    pub per_second: u32,
    /// At once.
    pub burst: u32,
}

/// Tokens that come at a rate and are taken one by one.
#[derive(Debug)]
pub(super) struct Bucket {
    rate: Rate,
    tokens: f64,
    at: Instant,
}

impl Bucket {
    /// One that holds all it can.
    pub(super) fn full(rate: Rate, now: Instant) -> Self {
        Self { rate, tokens: f64::from(rate.burst), at: now }
    }

    /// Lets tokens come at another rate from now on.
    pub(super) fn set_rate(&mut self, rate: Rate) {
        self.rate = rate;
        self.tokens = self.tokens.min(f64::from(rate.burst));
    }

    /// Whether there is a token beyond the `reserve`.
    pub(super) fn has(&mut self, reserve: u32, now: Instant) -> bool {
        let came = now.saturating_duration_since(self.at).as_secs_f64() * f64::from(self.rate.per_second);
        self.tokens = (self.tokens + came).min(f64::from(self.rate.burst));
        self.at = self.at.max(now);
        self.tokens >= f64::from(reserve) + 1.0
    }

    /// Takes one.
    pub(super) fn take(&mut self) {
        self.tokens -= 1.0;
    }

    /// Whether it is as good as new.
    pub(super) fn is_full(&mut self, now: Instant) -> bool {
        self.has(self.rate.burst.saturating_sub(1), now)
    }
}

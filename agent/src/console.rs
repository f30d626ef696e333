//! What the agent says, on the console and to the gateway. On the console: one line each, `openshell-agent: info: message field=value`.
//!
//! A subscriber of its own, because all that a guest's console needs of a logging library is this one format.
//! Only the agent's own events pass: what a library says of a connection may contain what goes over it.

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::logs::Writer;

/// The library and the program.
const OWN: [&str; 2] = ["agent", "openshell_agent"];

/// Makes the console the subscriber of this process, and panics its events. `log` gets them, too.
pub fn install(log: Writer) {
    let _ = tracing::subscriber::set_global_default(Console { lines: Mutex::new(()), log });
    std::panic::set_hook(Box::new(|panic| tracing::error!("panic: {panic}")));
}

#[derive(Debug)]
struct Console {
    /// Held while a line is written, so that those of two threads do not mix.
    lines: Mutex<()>,
    log: Writer,
}

impl Subscriber for Console {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let own = metadata.target().split("::").next().is_some_and(|name| OWN.contains(&name));
        own && *metadata.level() <= Level::INFO
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let text = text(event);
        let metadata = event.metadata();
        self.log.line(metadata.level().as_str(), metadata.target(), &text);
        let level = metadata.level().as_str().to_ascii_lowercase();
        let line = format!("openshell-agent: {level}: {text}\n");
        let _one_at_a_time = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        // A console that nobody reads is no reason to end.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

fn text(event: &Event<'_>) -> String {
    let mut words = Words::default();
    event.record(&mut words);
    let text = format!("{}{}", words.message, words.fields);
    // What a guest chose must not look like a line of its own.
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[derive(Default)]
struct Words {
    message: String,
    fields: String,
}

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

/// For lines that a workload can cause: at most one per interval, and the next one tells how many were left out.
#[derive(Debug)]
pub struct RateLimit {
    interval: Duration,
    state: Mutex<(Option<Instant>, u64)>,
}

impl RateLimit {
    /// One line per `interval`.
    pub const fn new(interval: Duration) -> Self {
        Self { interval, state: Mutex::new((None, 0)) }
    }

    /// Whether to speak now, and if so how many times it was not.
    pub fn admit(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match state.0 {
            Some(last) if now.duration_since(last) < self.interval => {
                state.1 += 1;
                None
            }
            _ => {
                state.0 = Some(now);
                Some(std::mem::take(&mut state.1))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_limit_tells_what_it_left_out() {
        let limit = RateLimit::new(Duration::from_secs(10));
        let start = Instant::now();
        let at = |seconds| limit.admit(start + Duration::from_secs(seconds));
        assert_eq!([at(0), at(1), at(9), at(10), at(20)], [Some(0), None, None, Some(2), Some(0)]);
    }
}

//! Whether, and after how long, a program that has ended is started again: a function of how it ended and how long
//! it ran. It starts nothing and waits for nothing itself.

use std::time::Duration;

use proto::boot::RestartPolicy;

/// Before the first restart; doubles with each that follows at once.
const DELAY_MIN: Duration = Duration::from_millis(500);
const DELAY_MAX: Duration = Duration::from_secs(30);
/// A run of this length is none that failed to come up: the delays begin anew.
const STEADY: Duration = Duration::from_secs(30);
/// Runs in a row that were not steady. More of the same would only hide the fault.
const CRASH_LOOP: u32 = 8;

/// What comes after the end of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing: this is the end.
    Ended,
    /// The next run, after this delay.
    Restart(Duration),
    /// It ended too often, too soon after its start: this is the end, and a fault.
    CrashLoop {
        /// How often in a row.
        runs: u32,
    },
}

/// The history of one program.
#[derive(Debug)]
pub struct Restarts {
    policy: RestartPolicy,
    short_runs: u32,
}

impl Restarts {
    /// Of a program that has not run yet.
    pub const fn new(policy: RestartPolicy) -> Self {
        Self { policy, short_runs: 0 }
    }

    /// A run ended with `code` after `ran`.
    pub fn ended(&mut self, code: i32, ran: Duration) -> Next {
        let again = match self.policy {
            RestartPolicy::Never => false,
            RestartPolicy::OnFailure => code != 0,
            RestartPolicy::Always => true,
        };
        if !again {
            return Next::Ended;
        }
        self.short_runs = if ran >= STEADY { 0 } else { self.short_runs + 1 };
        if self.short_runs >= CRASH_LOOP {
            return Next::CrashLoop { runs: self.short_runs };
        }
        let doubled = 1 << self.short_runs.saturating_sub(1);
        Next::Restart((DELAY_MIN * doubled).min(DELAY_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(10);

    #[test]
    fn the_policy_decides_whether() {
        for (policy, code, again) in [
            (RestartPolicy::Never, 0, false),
            (RestartPolicy::Never, 1, false),
            (RestartPolicy::OnFailure, 0, false),
            (RestartPolicy::OnFailure, 137, true),
            (RestartPolicy::Always, 0, true),
            (RestartPolicy::Always, 3, true),
        ] {
            let next = Restarts::new(policy).ended(code, SHORT);
            assert_eq!(next != Next::Ended, again, "{policy:?} {code}");
        }
    }

    #[test]
    fn short_runs_wait_longer_and_longer_and_then_are_a_crash_loop() {
        let mut restarts = Restarts::new(RestartPolicy::Always);
        let mut delays = vec![];
        let runs = loop {
            match restarts.ended(1, SHORT) {
                Next::Restart(delay) => delays.push(delay),
                Next::CrashLoop { runs } => break runs,
                Next::Ended => unreachable!("the policy is always"),
            }
        };
        assert_eq!((runs, delays.len()), (CRASH_LOOP, 7));
        assert_eq!((delays[0], delays[1], delays[6]), (DELAY_MIN, 2 * DELAY_MIN, DELAY_MAX));
    }

    #[test]
    fn a_steady_run_begins_anew() {
        let mut restarts = Restarts::new(RestartPolicy::OnFailure);
        for _ in 1..CRASH_LOOP {
            restarts.ended(1, SHORT);
        }
        assert_eq!(restarts.ended(1, STEADY), Next::Restart(DELAY_MIN));
        assert_eq!(restarts.ended(1, SHORT), Next::Restart(DELAY_MIN));
        assert_eq!(restarts.ended(1, SHORT), Next::Restart(2 * DELAY_MIN));
    }
}

//! What happens next to a sandbox: a pure function of where it stands and what just happened.
//!
//! The task feeds it events and does the actions; nothing here waits, reads a clock or can fail. Timers are levels:
//! [`timer`] says which deadline runs in a state, and the task arms it when that changes.

use serde::{Deserialize, Serialize};

use super::phase::Phase;

/// Boots in a row that may end early before the sandbox is given up.
pub const CRASH_CAP: u32 = 3;

/// Everything that decisions depend on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Where it stands.
    pub phase: Phase,
    /// Starts of the compute so far; the first part of the instance id.
    pub boot: u64,
    /// A session is up now. A stored `true` means nothing after a restart of the gateway.
    pub connected: bool,
    /// The connection epoch of the newest session of this boot: a late word of an older one changes nothing.
    #[serde(default)]
    pub epoch: u64,
    /// The main process of this boot ended with this code, as the agent reported.
    pub main_exit: Option<i32>,
    /// It is not started again though its policy says so: it ended too often, too soon.
    #[serde(default)]
    pub crash_loop: bool,
    /// Boots in a row that came up and ended early.
    pub crashes: u32,
    /// Boots in a row that ended without a word from the agent.
    pub silent: u32,
    /// Restarts by policy since somebody asked for a start.
    pub restarts: u32,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Somebody asked for it.
    Start,
    /// Somebody asked for it.
    Stop,
    /// Somebody asked for it.
    Delete,
    /// The driver did not start the compute.
    LaunchFailed,
    /// The agent of this boot said hello.
    SessionUp {
        /// Rises with every connection of one boot.
        epoch: u64,
    },
    /// That session ended.
    SessionLost {
        /// See above.
        epoch: u64,
    },
    /// The agent reported the end of the main process.
    MainExited(i32),
    /// The same, of one that was started again until that made no sense any more.
    MainGaveUp(i32),
    /// The compute of this boot is gone. `early`: soon after it came up.
    Gone {
        /// See above.
        early: bool,
    },
    /// The running [`Timer`] ended.
    TimeUp,
    /// Somebody removed the identity directory.
    DirectoryLost,
    /// The agent of this boot is one that the gateway cannot speak with.
    AgentRefused,
    /// The agent of this boot gives the sandbox up: a service that it cannot be without has failed.
    GivenUp,
}

/// What to do about it, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Start compute for `boot`.
    Launch,
    /// Let the guest know that it should stop.
    OrderStop,
    /// End the compute without asking the guest.
    Kill,
    /// Take the token off the disk.
    Withdraw,
    /// Remove every trace, then the record; does nothing while compute still runs.
    Remove,
}

/// Deadlines; which one runs follows from the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timer {
    /// From launch to hello.
    Boot,
    /// From the stop order to the end of the compute.
    Stop,
    /// From the end of the main process to the end of the compute.
    PowerOff,
    /// For how long a sandbox may be without a session.
    Disconnected,
    /// When a removal that did not succeed is tried again.
    Remove,
}

/// Why an event does nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It is already as asked.
    AlreadySo,
    /// It cannot be done from this phase.
    Cannot,
    /// A late word; nobody waits for an answer.
    Late,
}

/// Which deadline runs.
pub fn timer(machine: &Machine) -> Option<Timer> {
    match machine.phase {
        Phase::Provisioning | Phase::Starting => Some(Timer::Boot),
        Phase::Stopping => Some(Timer::Stop),
        Phase::Deleting => Some(Timer::Remove),
        Phase::Ready if machine.main_exit.is_some() => Some(Timer::PowerOff),
        Phase::Ready if !machine.connected => Some(Timer::Disconnected),
        _ => None,
    }
}

impl Machine {
    /// A sandbox that was just created, about to launch its first boot.
    pub fn created() -> Self {
        Self {
            phase: Phase::Provisioning,
            boot: 1,
            connected: false,
            epoch: 0,
            main_exit: None,
            crash_loop: false,
            crashes: 0,
            silent: 0,
            restarts: 0,
        }
    }

    fn boot_again(&self, phase: Phase) -> Self {
        Self {
            phase,
            boot: self.boot + 1,
            connected: false,
            epoch: 0,
            main_exit: None,
            crash_loop: false,
            ..self.clone()
        }
    }

    fn rests(&self, phase: Phase) -> Self {
        Self { phase, connected: false, ..self.clone() }
    }
}

/// See the module.
///
/// # Errors
/// A typed refusal: already so, impossible in this phase, or late.
pub fn decide(now: &Machine, event: Event) -> Result<(Machine, Vec<Action>), Refusal> {
    match event {
        Event::Start => start(now),
        Event::Stop => stop(now),
        Event::Delete => delete(now),
        Event::LaunchFailed => launch_failed(now),
        Event::SessionUp { epoch } if epoch >= now.epoch => session_up(&Machine { epoch, ..now.clone() }),
        Event::SessionLost { epoch } if now.connected && epoch == now.epoch => {
            Ok((Machine { connected: false, ..now.clone() }, vec![]))
        }
        Event::MainExited(code) => main_exited(now, code, false),
        Event::MainGaveUp(code) => main_exited(now, code, true),
        Event::Gone { early } => gone(now, early),
        Event::TimeUp => time_up(now),
        Event::DirectoryLost if matches!(now.phase, Phase::Provisioning | Phase::Starting | Phase::Ready) => {
            // Its end leads to a restart onto a fresh directory.
            Ok((now.clone(), vec![Action::Kill]))
        }
        // The same agent would come again with every boot. One that was up before is of an earlier gateway: its restart,
        // once it has been without a session for too long, brings the agent of this one.
        Event::AgentRefused if now.phase.is_booting() => {
            Ok((now.rests(Phase::Error), vec![Action::Kill, Action::Withdraw]))
        }
        // The next boot would start the same services.
        Event::GivenUp if now.phase.is_booting() || now.phase == Phase::Ready => {
            Ok((now.rests(Phase::Error), vec![Action::Kill, Action::Withdraw]))
        }
        Event::SessionUp { .. }
        | Event::SessionLost { .. }
        | Event::DirectoryLost
        | Event::AgentRefused
        | Event::GivenUp => Err(Refusal::Late),
    }
}

fn start(now: &Machine) -> Result<(Machine, Vec<Action>), Refusal> {
    match now.phase {
        Phase::Stopped | Phase::Completed | Phase::Error => {
            let next = Machine { crashes: 0, silent: 0, restarts: 0, ..now.boot_again(Phase::Starting) };
            Ok((next, vec![Action::Launch]))
        }
        Phase::Provisioning | Phase::Starting | Phase::Ready => Err(Refusal::AlreadySo),
        Phase::Stopping | Phase::Deleting => Err(Refusal::Cannot),
    }
}

fn stop(now: &Machine) -> Result<(Machine, Vec<Action>), Refusal> {
    let stopping = Machine { phase: Phase::Stopping, ..now.clone() };
    match now.phase {
        Phase::Ready => Ok((stopping, vec![Action::OrderStop])),
        // Nobody is there yet who could be asked.
        Phase::Provisioning | Phase::Starting => Ok((stopping, vec![Action::Kill])),
        Phase::Stopping | Phase::Stopped | Phase::Completed => Err(Refusal::AlreadySo),
        Phase::Error | Phase::Deleting => Err(Refusal::Cannot),
    }
}

fn delete(now: &Machine) -> Result<(Machine, Vec<Action>), Refusal> {
    match now.phase {
        Phase::Deleting => Err(Refusal::AlreadySo),
        phase if phase.has_compute() => Ok((now.rests(Phase::Deleting), vec![Action::Kill])),
        _ => Ok((now.rests(Phase::Deleting), vec![Action::Remove])),
    }
}

fn launch_failed(now: &Machine) -> Result<(Machine, Vec<Action>), Refusal> {
    match now.phase {
        // What failed may have been the word that it runs.
        Phase::Provisioning | Phase::Starting => Ok((now.rests(Phase::Error), vec![Action::Kill, Action::Withdraw])),
        _ => Err(Refusal::Late),
    }
}

fn session_up(now: &Machine) -> Result<(Machine, Vec<Action>), Refusal> {
    match now.phase {
        Phase::Provisioning | Phase::Starting => {
            Ok((Machine { phase: Phase::Ready, connected: true, silent: 0, ..now.clone() }, vec![]))
        }
        Phase::Ready => Ok((Machine { connected: true, ..now.clone() }, vec![])),
        // It was away when the order went out.
        Phase::Stopping => Ok((Machine { connected: true, ..now.clone() }, vec![Action::OrderStop])),
        _ => Err(Refusal::Late),
    }
}

fn main_exited(now: &Machine, code: i32, crash_loop: bool) -> Result<(Machine, Vec<Action>), Refusal> {
    match now.phase {
        Phase::Provisioning | Phase::Starting | Phase::Ready | Phase::Stopping if now.main_exit.is_none() => {
            Ok((Machine { main_exit: Some(code), crash_loop, ..now.clone() }, vec![]))
        }
        // A repeated report: the reply to the first was lost.
        phase if phase.has_compute() && now.main_exit == Some(code) => Err(Refusal::AlreadySo),
        _ => Err(Refusal::Late),
    }
}

fn gone(now: &Machine, early: bool) -> Result<(Machine, Vec<Action>), Refusal> {
    match now.phase {
        Phase::Stopping => Ok((now.rests(Phase::Stopped), vec![Action::Withdraw])),
        Phase::Deleting => Ok((now.clone(), vec![Action::Remove])),
        Phase::Provisioning | Phase::Starting | Phase::Ready if now.main_exit.is_some() => {
            let phase = if now.crash_loop { Phase::Error } else { Phase::Completed };
            Ok((now.rests(phase), vec![Action::Withdraw]))
        }
        // A guest that never said hello gets one more chance, whatever exit code its vmm left.
        phase if phase.is_booting() => {
            if now.silent == 0 {
                Ok((Machine { silent: 1, ..now.boot_again(phase) }, vec![Action::Launch]))
            } else {
                Ok((now.rests(Phase::Error), vec![Action::Withdraw]))
            }
        }
        Phase::Ready => {
            let crashes = if early { now.crashes + 1 } else { 0 };
            if crashes >= CRASH_CAP {
                return Ok((Machine { crashes, ..now.rests(Phase::Error) }, vec![Action::Withdraw]));
            }
            let next = Machine { crashes, restarts: now.restarts + 1, ..now.boot_again(Phase::Starting) };
            Ok((next, vec![Action::Launch]))
        }
        _ => Err(Refusal::Late),
    }
}

fn time_up(now: &Machine) -> Result<(Machine, Vec<Action>), Refusal> {
    match timer(now) {
        Some(Timer::Boot) => Ok((now.rests(Phase::Error), vec![Action::Kill, Action::Withdraw])),
        // The end of the compute decides what comes next.
        Some(Timer::Stop | Timer::PowerOff | Timer::Disconnected) => Ok((now.clone(), vec![Action::Kill])),
        Some(Timer::Remove) => Ok((now.clone(), vec![Action::Kill, Action::Remove])),
        None => Err(Refusal::Late),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Start),
            Just(Event::Stop),
            Just(Event::Delete),
            Just(Event::LaunchFailed),
            (0..3u64).prop_map(|epoch| Event::SessionUp { epoch }),
            (0..3u64).prop_map(|epoch| Event::SessionLost { epoch }),
            (0..3i32).prop_map(Event::MainExited),
            (0..3i32).prop_map(Event::MainGaveUp),
            any::<bool>().prop_map(|early| Event::Gone { early }),
            Just(Event::TimeUp),
            Just(Event::DirectoryLost),
            Just(Event::AgentRefused),
            Just(Event::GivenUp),
        ]
    }

    const EVENTS: [Event; 14] = [
        Event::Start,
        Event::Stop,
        Event::Delete,
        Event::LaunchFailed,
        Event::SessionUp { epoch: 1 },
        Event::SessionLost { epoch: 1 },
        Event::MainExited(0),
        Event::MainGaveUp(1),
        Event::Gone { early: true },
        Event::Gone { early: false },
        Event::TimeUp,
        Event::DirectoryLost,
        Event::AgentRefused,
        Event::GivenUp,
    ];

    /// Every machine that can be reached, by exhaustive search.
    fn reachable() -> Vec<Machine> {
        let mut seen: HashSet<String> = HashSet::new();
        let mut todo = vec![Machine::created()];
        let mut all = vec![];
        while let Some(machine) = todo.pop() {
            // Counters that only count do not make a new state.
            let key = Machine { boot: 0, restarts: 0, ..machine.clone() };
            if !seen.insert(format!("{key:?}")) {
                continue;
            }
            todo.extend(EVENTS.iter().filter_map(|e| decide(&machine, *e).ok()).map(|(next, _)| next));
            all.push(machine);
        }
        all
    }

    #[test]
    fn every_drawn_edge_is_taken_and_no_other() {
        let mut taken = HashSet::new();
        for machine in reachable() {
            for event in EVENTS {
                if let Ok((next, _)) = decide(&machine, event)
                    && next.phase != machine.phase
                {
                    assert!(machine.phase.leads_to(next.phase), "{machine:?} on {event:?} to {:?}", next.phase);
                    taken.insert((machine.phase, next.phase));
                }
            }
        }
        for from in Phase::ALL {
            for to in Phase::ALL {
                assert_eq!(from.leads_to(to), taken.contains(&(from, to)), "{from:?} to {to:?}");
            }
        }
    }

    #[test]
    fn every_phase_has_a_verb_out() {
        for machine in reachable() {
            let verbs = [Event::Start, Event::Stop, Event::Delete];
            let moves = verbs.iter().any(|v| decide(&machine, *v).is_ok_and(|(next, _)| next.phase != machine.phase));
            assert!(moves || machine.phase == Phase::Deleting, "{machine:?}");
        }
    }

    #[test]
    fn a_phase_without_deadline_waits_for_nothing() {
        for machine in reachable() {
            let waits = machine.phase.has_compute() && machine.phase != Phase::Ready;
            assert!(!waits || timer(&machine).is_some(), "{machine:?}");
        }
    }

    #[test]
    fn a_late_word_of_an_older_session_changes_nothing() {
        let (first, _) = decide(&Machine::created(), Event::SessionUp { epoch: 1 }).unwrap();
        let (second, _) = decide(&first, Event::SessionUp { epoch: 2 }).unwrap();
        assert_eq!(decide(&second, Event::SessionLost { epoch: 1 }), Err(Refusal::Late));
        assert_eq!(decide(&second, Event::SessionUp { epoch: 1 }), Err(Refusal::Late));
        let (alone, _) = decide(&second, Event::SessionLost { epoch: 2 }).unwrap();
        assert!(!alone.connected);
    }

    #[test]
    fn silence_ends_in_error_after_one_retry() {
        let first = Machine::created();
        let (second, actions) = decide(&first, Event::Gone { early: true }).unwrap();
        assert_eq!((second.phase, second.boot, actions), (Phase::Provisioning, 2, vec![Action::Launch]));
        let (third, actions) = decide(&second, Event::Gone { early: true }).unwrap();
        assert_eq!((third.phase, actions), (Phase::Error, vec![Action::Withdraw]));
    }

    #[test]
    fn an_agent_is_refused_only_on_the_way_up() {
        for machine in reachable() {
            match decide(&machine, Event::AgentRefused) {
                Ok((next, actions)) => {
                    assert!(machine.phase.is_booting(), "{machine:?}");
                    assert_eq!((next.phase, next.boot), (Phase::Error, machine.boot), "no further try");
                    assert_eq!(actions, [Action::Kill, Action::Withdraw]);
                }
                Err(refusal) => assert!(!machine.phase.is_booting() && refusal == Refusal::Late, "{machine:?}"),
            }
        }
    }

    #[test]
    fn a_sandbox_that_its_agent_gives_up_is_not_booted_again() {
        for machine in reachable() {
            let Ok((next, actions)) = decide(&machine, Event::GivenUp) else { continue };
            assert_eq!((next.phase, next.boot), (Phase::Error, machine.boot), "{machine:?}");
            assert_eq!(actions, [Action::Kill, Action::Withdraw]);
        }
        let ready = Machine { phase: Phase::Ready, connected: true, ..Machine::created() };
        assert!(decide(&ready, Event::GivenUp).is_ok());
        let stopping = Machine { phase: Phase::Stopping, ..ready };
        assert_eq!(decide(&stopping, Event::GivenUp), Err(Refusal::Late));
    }

    #[test]
    fn an_exit_code_counts_only_when_it_was_reported() {
        let ready = Machine { phase: Phase::Ready, connected: true, ..Machine::created() };
        let (reported, _) = decide(&ready, Event::MainExited(7)).unwrap();
        assert_eq!(decide(&reported, Event::MainExited(7)), Err(Refusal::AlreadySo));
        let (done, _) = decide(&reported, Event::Gone { early: true }).unwrap();
        assert_eq!((done.phase, done.main_exit), (Phase::Completed, Some(7)));
        let (restarted, _) = decide(&ready, Event::Gone { early: false }).unwrap();
        assert_eq!((restarted.phase, restarted.main_exit), (Phase::Starting, None));
    }

    #[test]
    fn a_crash_loop_is_an_error_that_a_start_leads_out_of() {
        let ready = Machine { phase: Phase::Ready, connected: true, ..Machine::created() };
        let (given_up, actions) = decide(&ready, Event::MainGaveUp(3)).unwrap();
        assert_eq!((given_up.phase, actions), (Phase::Ready, vec![]), "until the compute is gone");
        assert_eq!(decide(&given_up, Event::MainExited(3)), Err(Refusal::AlreadySo), "a repeated report");
        assert_eq!(decide(&given_up, Event::MainExited(0)), Err(Refusal::Late));
        let (over, actions) = decide(&given_up, Event::Gone { early: true }).unwrap();
        assert_eq!((over.phase, over.main_exit, actions), (Phase::Error, Some(3), vec![Action::Withdraw]));
        let (again, _) = decide(&over, Event::Start).unwrap();
        assert_eq!((again.phase, again.main_exit, again.crash_loop), (Phase::Starting, None, false));
        let (stopping, _) = decide(&given_up, Event::Stop).unwrap();
        assert_eq!(decide(&stopping, Event::Gone { early: true }).unwrap().0.phase, Phase::Stopped);
    }

    proptest! {
        #[test]
        fn invariants_hold_on_every_walk(events in prop::collection::vec(event(), 1..60)) {
            let mut machine = Machine::created();
            for event in events {
                let Ok((next, actions)) = decide(&machine, event) else { continue };
                prop_assert!(next.boot >= machine.boot);
                // A launch is a new boot, and a new boot is a launch.
                prop_assert_eq!(next.boot > machine.boot, actions.contains(&Action::Launch));
                // Compute comes only into phases that may have it, and is not left behind by those that may not.
                if actions.contains(&Action::Launch) {
                    prop_assert!(next.phase.has_compute());
                }
                let left = machine.phase.has_compute() && !next.phase.has_compute();
                let over = matches!(event, Event::Gone { .. });
                prop_assert!(!left || over || actions.contains(&Action::Kill));
                // At rest there is no token on disk.
                if next.phase != machine.phase && !next.phase.has_compute() {
                    prop_assert!(actions.contains(&Action::Withdraw));
                }
                prop_assert!(!next.connected || next.phase.has_compute());
                machine = next;
            }
        }
    }
}

//! The reaper with real processes. A test process of its own, because it waits for every child there is.

#![forbid(unsafe_code)]

use std::io::Read as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent::workload::process::{Family, hang_up};
use agent::workload::reaper::{Reaper, exited};
use rustix::process::{Pid, Signal, getpid, set_child_subreaper};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(90);

fn shell(script: &str) -> Command {
    let mut command = Command::new("setsid");
    command.args(["sh", "-c", script]).stdin(Stdio::null());
    command
}

#[tokio::test(flavor = "current_thread")]
async fn every_exit_arrives_where_it_belongs_and_orphans_are_reaped() {
    let reaper = Arc::new(Reaper::default());
    tokio::spawn({
        let reaper = reaper.clone();
        async move { reaper.run().await }
    });
    let test = async {
        // Many at once, all with codes of their own.
        let mut started: Vec<_> =
            (0..50).map(|code| (code, reaper.spawn(&mut shell(&format!("exit {code}"))).unwrap().1)).collect();
        for (code, exit) in &mut started {
            assert_eq!(exited(exit).await, *code);
        }

        let (pid, mut exit) = reaper.spawn(Command::new("sleep").arg("1000")).unwrap();
        reaper.signal_group(pid, Signal::TERM);
        assert_eq!(exited(&mut exit).await, 128 + 15);
        // Its number may be another's now.
        reaper.signal_group(pid, Signal::KILL);

        // A failed start leaves nothing behind.
        assert!(reaper.spawn(&mut Command::new("/no/such/program")).is_err());
        assert_eq!(reaper.running(), 0);

        set_child_subreaper(Some(getpid())).unwrap();
        let (_, mut exit) = reaper.spawn(&mut shell("(exec 3>&-; sleep 0.1) & exit 0")).unwrap();
        assert_eq!(exited(&mut exit).await, 0);
        nothing_left().await;
        a_storm_takes_no_exit_away(&reaper).await;
        a_session_that_will_not_end_is_killed(&reaper).await;
        an_idle_shell_ends_by_the_hangup(&reaper).await;
    };
    timeout(DEADLINE, test).await.expect("a process was never reaped");
}

async fn nothing_left() {
    while children() > 0 {
        tokio::task::yield_now().await;
    }
}

/// Ten thousand, all of them ended, become orphans at once: their parent has waited for none.
async fn a_storm_takes_no_exit_away(reaper: &Reaper) {
    const STORM: &str = "for (1..10000) { my $p = fork // die; POSIX::_exit(0) unless $p } POSIX::_exit(77)";
    let (_, mut storm) = reaper.spawn(Command::new("perl").args(["-MPOSIX", "-e", STORM])).unwrap();
    let (mut during, mut most) = (0, 0);
    while storm.borrow().is_none() {
        let code = during % 200;
        let (_, mut exit) = reaper.spawn(&mut shell(&format!("exit {code}"))).unwrap();
        assert_eq!(exited(&mut exit).await, code);
        most = most.max(children());
        during += 1;
    }
    assert_eq!(exited(&mut storm).await, 77);
    let mut after: Vec<_> =
        (0..50).map(|code| (code, reaper.spawn(&mut shell(&format!("exit {code}"))).unwrap().1)).collect();
    for (code, exit) in &mut after {
        assert_eq!(exited(exit).await, *code);
    }
    nothing_left().await;
    assert!(during > 0, "the storm was over before the first exit; {most} children at a time");
}

/// Children that ignore what they are asked, and one that stands still.
async fn a_session_that_will_not_end_is_killed(reaper: &Reaper) {
    let (said, mut says) = std::io::pipe().map(|(out, into)| (into, out)).unwrap();
    let script = "trap '' HUP TERM; (kill -STOP $BASHPID; sleep 1000) & echo ready; sleep 1000; sleep 1000";
    let mut command = Command::new("setsid");
    let (pid, exit) = reaper.spawn(command.args(["bash", "-c", script]).stdin(Stdio::null()).stdout(said)).unwrap();
    drop(command);
    let mut line = [0; 6];
    says.read_exact(&mut line).unwrap();
    let began = Instant::now();
    hang_up(reaper, &Family { leader: pid, exit: exit.clone() }).await;
    assert_eq!(exited(&mut exit.clone()).await, 128 + 9);
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    nothing_left().await;
}

async fn an_idle_shell_ends_by_the_hangup(reaper: &Reaper) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let terminal = openpt(flags).unwrap();
    unlockpt(&terminal).unwrap();
    let theirs = || Stdio::from(ioctl_tiocgptpeer(&terminal, flags).unwrap());
    let mut command = Command::new("setsid");
    command.args(["--ctty", "bash", "--norc", "-i"]).stdin(theirs()).stdout(theirs()).stderr(theirs());
    let (pid, exit) = reaper.spawn(&mut command).unwrap();
    drop(command);
    // Its prompt to the end: it is idle. What comes before says so too early: a HUP then would wait for a key.
    let (mut prompt, mut piece) = (vec![], [0; 64]);
    while !prompt.ends_with(b"# ") {
        let length = rustix::io::read(&terminal, &mut piece).unwrap();
        prompt.extend_from_slice(&piece[..length]);
    }
    hang_up(reaper, &Family { leader: pid, exit: exit.clone() }).await;
    // By the hangup: it does not heed TERM, and KILL has another code.
    assert_eq!(exited(&mut exit.clone()).await, 128 + 1);
    nothing_left().await;
}

fn children() -> usize {
    let path = format!("/proc/self/task/{}/children", Pid::as_raw_nonzero(getpid()));
    std::fs::read_to_string(path).unwrap_or_default().split_whitespace().count()
}

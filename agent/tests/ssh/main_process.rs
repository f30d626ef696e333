//! Runs of the main process one after the other, and who of those attached types.

use std::sync::Arc;
use std::time::{Duration, Instant};

use agent::workload::main_process::Finished;
use proto::boot::{MainProcess as MainSpec, RestartPolicy};
use proto::layout::{ATTACH_SUBSYSTEM, ATTACH_TAKING_INPUT_SUBSYSTEM};
use russh::client::Msg;
use russh::{Channel, ChannelMsg};

use super::fixture::{self, Client, workload_or_skip};

fn spec(script: &str, restart: RestartPolicy) -> MainSpec {
    let argv = ["sh", "-c", script].map(str::to_owned).to_vec();
    MainSpec { argv, tty: false, await_attachment: true, restart }
}

#[test]
fn a_main_process_that_fails_is_started_again_and_its_watcher_stays() {
    let Some(fixture) = workload_or_skip() else { return };
    fixture.run(async |fixture| {
        let directory = tempfile::tempdir().unwrap();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(directory.path(), open).unwrap();
        // Not whether its number is taken: a dead one may wait for this machine's init.
        let script = format!(
            "cd {}; n=$(cat runs 2>/dev/null || echo 0); echo run $n; echo $((n + 1)) >runs
             [ -f left ] && grep -q 'State:.[RS]' /proc/$(cat left)/status 2>/dev/null && echo what the last run left behind is alive
             sleep 20 & echo $! >left; [ $n -ge 2 ]",
            directory.path().display()
        );
        let (server, main) = fixture.with_spec(spec(&script, RestartPolicy::OnFailure));
        let running = tokio::spawn({
            let main = main.clone();
            async move { main.run().await }
        });
        let client = Client::connect_to(server).await;
        let outcome = client.attach(b"").await;
        assert_eq!((outcome.text().as_str(), outcome.code), ("run 0\nrun 1\nrun 2\n", Some(0)));
        assert_eq!(running.await.unwrap(), Finished { code: 0, crash_loop: 0 });
        let runs = *main.runs().borrow();
        assert_eq!((runs.restarts, runs.last_code, runs.crash_loop, runs.next), (2, Some(0), 0, None));
        assert!(runs.started.is_some());
    });
}

#[test]
fn no_run_begins_once_the_sandbox_ends() {
    let Some(fixture) = workload_or_skip() else { return };
    fixture.run(async |fixture| {
        let (_, main) =
            fixture.with_spec(MainSpec { await_attachment: false, ..spec("exit 3", RestartPolicy::Always) });
        let mut runs = main.runs().subscribe();
        let running = tokio::spawn({
            let main = main.clone();
            async move { main.run().await }
        });
        // The delay before the fourth run is 2 s.
        runs.wait_for(|runs| runs.restarts == 2 && runs.next.is_some()).await.unwrap();
        let began = Instant::now();
        main.start_no_more();
        assert_eq!(running.await.unwrap(), Finished { code: 3, crash_loop: 0 });
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    });
}

async fn attached(client: &Client, subsystem: &str) -> Channel<Msg> {
    let channel = client.session().await;
    channel.request_subsystem(true, subsystem).await.unwrap();
    channel
}

/// Until both streams together hold this.
async fn hears(channel: &mut Channel<Msg>, wanted: &str) -> String {
    let mut heard = String::new();
    while !heard.contains(wanted) {
        match channel.wait().await {
            Some(ChannelMsg::Data { data } | ChannelMsg::ExtendedData { data, .. }) => {
                heard.push_str(&String::from_utf8_lossy(&data));
            }
            Some(_) => {}
            None => panic!("ended before {wanted:?}, with {heard:?}"),
        }
    }
    heard
}

#[test]
fn one_who_does_not_read_keeps_the_end_back_for_a_while_and_not_for_ever() {
    let Some(fixture) = workload_or_skip() else { return };
    fixture.run(async |fixture| {
        // Beside whatever is on its way there is a ring to fill; then it waits for the one who is attached.
        let (server, main) = fixture.with_spec(spec("yes & sleep 5; kill $!; exit 4", RestartPolicy::Never));
        let running = tokio::spawn(async move { (main.run().await.code, Instant::now()) });
        let client = Client::connect_to(server).await;
        let channel = attached(&client, ATTACH_SUBSYSTEM).await;
        let began = Instant::now();
        let (code, ended) = running.await.unwrap();
        assert_eq!(code, 4);
        assert!(ended - began > Duration::from_secs(10), "nobody was waited for: {:?}", ended - began);
        drop(channel);
    });
}

#[test]
fn one_types_and_the_others_watch() {
    let Some(fixture) = workload_or_skip() else { return };
    fixture.run(async |fixture| {
        let script = "while read -r l; do echo got $l; done";
        let (server, main) = fixture.with_spec(spec(script, RestartPolicy::Never));
        let (server, running) = (Arc::new(server), tokio::spawn(async move { main.run().await }));
        let (one, two) = (Client::connect_to(server.clone()).await, Client::connect_to(server.clone()).await);
        let mut first = attached(&one, ATTACH_SUBSYSTEM).await;
        let mut second = attached(&two, ATTACH_SUBSYSTEM).await;
        first.data_bytes(&b"a\n"[..]).await.unwrap();
        hears(&mut first, "got a\n").await;
        hears(&mut second, "got a\n").await;
        second.data_bytes(&b"dropped\n"[..]).await.unwrap();
        hears(&mut second, "somebody else has the input").await;
        // Nor does the end of what may not be typed end anything.
        second.eof().await.unwrap();
        first.data_bytes(&b"b\n"[..]).await.unwrap();
        assert_eq!(hears(&mut first, "got b\n").await, "got b\n");

        let three = Client::connect_to(server).await;
        let mut third = attached(&three, ATTACH_TAKING_INPUT_SUBSYSTEM).await;
        hears(&mut first, "somebody else took the input").await;
        first.data_bytes(&b"dropped\n"[..]).await.unwrap();
        hears(&mut first, "somebody else has the input").await;
        third.data_bytes(&b"c\n"[..]).await.unwrap();
        assert_eq!(hears(&mut third, "got c\n").await, "got a\ngot b\ngot c\n", "with what was before");

        // The holder leaves; the next one who types has it.
        drop(third);
        drop(three);
        let typed = async {
            loop {
                first.data_bytes(&b"d\n"[..]).await.unwrap();
                let next = tokio::time::timeout(Duration::from_millis(100), hears(&mut first, "got d\n")).await;
                if next.is_ok() {
                    break;
                }
            }
        };
        typed.await;
        first.eof().await.unwrap();
        assert_eq!(fixture::outcome(&mut first).await.code, Some(0));
        assert_eq!(running.await.unwrap().code, 0);
    });
}

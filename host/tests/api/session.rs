//! From hello to the end of a session, and what is said in it.

use std::time::{Duration, SystemTime};

use host::sandbox::decide::Event;
use host::sandbox::phase::Phase;
use proto::budget;
use proto::openshell::v1::SupervisorHeartbeat;
use proto::openshell::v1::gateway_message::Payload;
use proto::openshell::v1::supervisor_message::Payload as Said;
use proto::vmm::Ended;
use tokio::time::{Instant, timeout};
use tonic::Code;

use crate::agent::Agent;
use crate::stage::{Knobs, PATIENCE, Stage, becomes, reaches};

#[tokio::test(flavor = "multi_thread")]
async fn a_session_begins_with_a_hello_of_its_own_sandbox() {
    let stage = Stage::up().await;
    let (mine, other) = (stage.launched("mine").await, stage.launched("other").await);
    let agent = Agent::of(&stage, &mine).await;

    let refused = async |first| agent.open(Some(first)).await.err().expect("refused");
    let status = refused(Said::Heartbeat(SupervisorHeartbeat {})).await;
    assert_eq!((status.code(), status.message().contains("hello")), (Code::InvalidArgument, true), "{status:?}");

    let mut stranger = agent.hello(1);
    if let Said::Hello(hello) = &mut stranger {
        hello.sandbox_id = other.id.to_string();
    }
    let status = refused(stranger).await;
    assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "cross-sandbox access denied"));
    assert_eq!(mine.view().phase(), Phase::Provisioning);

    agent.session(1).await;
    reaches(&mine, Phase::Ready).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_nothing_is_not_waited_for() {
    let stage = Stage::up().await;
    let mine = stage.launched("mine").await;
    let agent = Agent::of(&stage, &mine).await;
    // An answer on this connection keeps its lease: what ends the stream is the missing hello.
    agent.sync().await.expect("sync");
    let status = timeout(PATIENCE, agent.open(None)).await.expect("an end").err().expect("refused");
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert!(status.message().contains("no hello within 5s"), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn hellos_that_are_rejected_say_why() {
    let stage = Stage::up().await;
    let mine = stage.launched("mine").await;
    let mut agent = Agent::of(&stage, &mine).await;

    let current = std::mem::replace(&mut agent.instance_id, "7-other".into());
    assert_eq!(agent.rejected(1).await, "the instance is not the current boot of this sandbox");
    agent.instance_id = current;

    assert_eq!(mine.view().phase(), Phase::Provisioning, "no rejected hello counts");

    let _live = agent.session(5).await;
    for epoch in [5, 4] {
        assert_eq!(agent.rejected(epoch).await, "its connection epoch is not above 5, which is in force");
    }
    assert!(mine.view().record.machine.connected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_higher_epoch_supersedes() {
    let stage = Stage::up().await;
    let mine = stage.launched("mine").await;
    let agent = Agent::of(&stage, &mine).await;
    let mut first = agent.session(1).await;
    let again = Agent::of(&stage, &mine).await;
    let mut second = again.session(2).await;
    assert_eq!(first.next_order().await, None, "the first one ends");
    assert!(stage.sessions.of(mine.id).is_some_and(|session| session.epoch == 2));
    stage.sessions.nudge(mine.id);
    assert!(matches!(second.next().await, Some(Payload::Heartbeat(_))));
    assert!(mine.view().record.machine.connected, "its end was not the sandbox's");
}

#[tokio::test(flavor = "multi_thread")]
async fn three_missed_heartbeats_end_a_session_and_answers_keep_it() {
    let heartbeat = Duration::from_millis(200);
    let stage = Stage::with(Knobs { heartbeat, ..Knobs::default() }).await;
    let (quiet, lively) = (stage.launched("quiet").await, stage.launched("lively").await);
    let (one, two) = (Agent::of(&stage, &quiet).await, Agent::of(&stage, &lively).await);
    let mut living = two.session(1).await;
    let lives = tokio::spawn(async move {
        while let Some(Payload::Heartbeat(_)) = living.next().await {
            living.beat().await;
        }
    });
    let began = Instant::now();
    let mut dying = one.session(1).await;
    assert_eq!(dying.next_order().await, None);
    assert!(began.elapsed() >= heartbeat * budget::HEARTBEATS_MISSED, "after {:?}", began.elapsed());
    let view = becomes(&quiet, "disconnected", |view| !view.record.machine.connected).await;
    assert_eq!(view.phase(), Phase::Ready, "being without a session is a condition, not a phase");
    assert!(lively.view().record.machine.connected && !lives.is_finished(), "answers keep a session");
    // And it comes back.
    let _back = one.session(2).await;
    becomes(&quiet, "connected", |view| view.record.machine.connected).await;
    lives.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn sync_tells_time_generation_and_stop() {
    let stage = Stage::up().await;
    let mine = stage.launched("mine").await;
    let agent = Agent::of(&stage, &mine).await;
    let mut session = agent.session(1).await;
    reaches(&mine, Phase::Ready).await;
    assert!(matches!(session.next().await, Some(Payload::Heartbeat(_))), "the first one comes at once");

    let reply = agent.sync().await.expect("sync");
    let told = SystemTime::try_from(reply.wall_time.expect("a time")).expect("after the epoch");
    let apart = told.elapsed().unwrap_or_else(|ahead| ahead.duration());
    assert!(apart < Duration::from_secs(5), "{apart:?}");
    let published = stage.rotation.published(mine.id).expect("published").generation;
    assert_eq!((reply.published_generation, reply.stop), (published, None));
    let next = stage.rotation.rotate_now(mine.id).await.expect("rotate").generation;
    assert_eq!(agent.sync().await.expect("the old token is still good").published_generation, next);

    mine.ask(Event::Stop).await.expect("stop");
    assert!(matches!(session.next().await, Some(Payload::Heartbeat(_))), "a nudge comes with the order");
    let order = agent.sync().await.expect("sync").stop.expect("an order");
    assert_eq!(Duration::try_from(order.grace.expect("a grace")), Ok(budget::STOP_GUEST));
    assert!(agent.sync().await.expect("sync").stop.is_some(), "it is a level");

    stage.driver.end(mine.id, Ended::Exited(0));
    reaches(&mine, Phase::Stopped).await;
    assert_eq!(session.next_order().await, None, "a stopped sandbox has no connection");
    assert!(!stage.vm_socket(mine.id).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_main_process_counts_once() {
    let stage = Stage::up().await;
    let (mine, other) = (stage.launched("mine").await, stage.launched("other").await);
    let mut agent = Agent::of(&stage, &mine).await;
    let _session = agent.session(1).await;

    agent.sandbox_id = other.id.to_string();
    assert_eq!(agent.report(1).await.expect_err("another's").code(), Code::PermissionDenied);
    agent.sandbox_id = mine.id.to_string();
    let current = std::mem::replace(&mut agent.instance_id, "9-other".into());
    assert_eq!(agent.report(1).await.expect_err("another boot's").code(), Code::Aborted);
    agent.instance_id = current;
    assert_eq!((mine.view().exit_code(), other.view().exit_code()), (None, None));

    agent.report(7).await.expect("the first");
    agent.report(7).await.expect("the same again: its reply was lost");
    let status = agent.report(8).await.expect_err("another code");
    assert_eq!(status.code(), Code::Aborted, "{status:?}");
    assert_eq!(mine.view().exit_code(), Some(7));

    // Whatever the vmm's own exit code is.
    stage.driver.end(mine.id, Ended::Exited(0));
    let done = reaches(&mine, Phase::Completed).await;
    assert_eq!((done.exit_code(), other.view().phase()), (Some(7), Phase::Provisioning));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_ends_with_the_newest_token_that_was_presented() {
    // Without leeway, so that two seconds are two seconds.
    let stage = Stage::with(Knobs { leeway: Duration::ZERO, ..Knobs::default() }).await;
    let mine = stage.launched("mine").await;
    let generation = mine.view().record.floor;
    let socket = stage.vm_socket(mine.id);
    let short = stage.minted(mine.id, generation, Duration::from_secs(2));
    let ending = Agent::at(&socket, &mine, short.clone()).await;
    let kept = Agent::at(&socket, &mine, short).await;
    let fresh = Agent::of(&stage, &mine).await;
    let began = Instant::now();
    let mut session = ending.session(1).await;
    kept.sync().await.expect("good for two seconds");
    fresh.sync().await.expect("good");
    // The same connection as `kept`, extended by a newer token.
    let extended = kept.with_token(stage.token(mine.id));
    extended.sync().await.expect("good");

    assert_eq!(session.next_order().await, None, "the stream ends with the lease of its connection");
    assert!(began.elapsed() < Duration::from_secs(4), "after {:?}", began.elapsed());
    becomes(&mine, "disconnected", |view| !view.record.machine.connected).await;
    // On another connection: that one is being taken down.
    let late = Agent::at(&socket, &mine, ending.token.clone()).await;
    assert_eq!(late.sync().await.expect_err("over").code(), Code::Unauthenticated);
    extended.session(2).await;
    fresh.sync().await.expect("its own lease goes on");
}

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);
/// For which nothing moves.
const STUCK: Duration = Duration::from_millis(200);

type Frames = ReceiverStream<Result<RelayFrame, Status>>;

/// One end as the user has it, with the peer's hands free: what it sends, and what it is sent.
struct Half {
    incoming: Incoming,
    outgoing: Outgoing,
    say: mpsc::Sender<Result<RelayFrame, Status>>,
    heard: mpsc::Receiver<RelayFrame>,
    carrying: JoinHandle<()>,
}

fn half(credit: u32) -> Half {
    let (end, incoming, outgoing) = end();
    let (say, frames) = mpsc::channel(1);
    let (peer, heard) = mpsc::channel(1);
    let carrying = tokio::spawn(carry(end, Frames::new(frames), peer, credit));
    Half { incoming, outgoing, say, heard, carrying }
}

type Used = (Incoming, Outgoing);

/// Two ends of one relay.
fn whole(credit: u32) -> (Used, Used, [JoinHandle<()>; 2]) {
    let (ours, our_incoming, our_outgoing) = end();
    let (theirs, their_incoming, their_outgoing) = end();
    let (to_them, from_us) = mpsc::channel(1);
    let (to_us, from_them) = mpsc::channel(1);
    let carrying = [
        tokio::spawn(carry(ours, ReceiverStream::new(from_them).map(Ok), to_them, credit)),
        tokio::spawn(carry(theirs, ReceiverStream::new(from_us).map(Ok), to_us, credit)),
    ];
    ((our_incoming, our_outgoing), (their_incoming, their_outgoing), carrying)
}

fn chunk() -> Bytes {
    Bytes::from(vec![7; RELAY_CHUNK])
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}

async fn read_all(incoming: &mut Incoming) -> Vec<u8> {
    let mut all = vec![];
    while let Some(data) = incoming.recv().await {
        all.extend_from_slice(&data.expect("data"));
    }
    all
}

#[tokio::test]
async fn bytes_go_both_ways_and_each_end_arrives_by_itself() {
    for credit in [RELAY_CREDIT, 0] {
        let ((mut our_incoming, our_outgoing), (mut their_incoming, their_outgoing), carrying) = whole(credit);
        let sent: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
        let ours = async {
            our_outgoing.send(sent.clone().into()).await.expect("open");
            drop(our_outgoing);
            read_all(&mut our_incoming).await
        };
        // Answers only after the end, with more than any credit.
        let theirs = async {
            let all = read_all(&mut their_incoming).await;
            for byte in &all[..1000] {
                their_outgoing.send(Bytes::copy_from_slice(&[*byte])).await.expect("open");
            }
            their_outgoing.send(all.clone().into()).await.expect("open");
            drop(their_outgoing);
            all
        };
        let (back, forth) = within("both ends", async { tokio::join!(ours, theirs) }).await;
        assert!(forth == sent, "{} bytes arrived", forth.len());
        assert!(back[..1000] == sent[..1000] && back[1000..] == sent, "{} bytes came back", back.len());
        for carrying in carrying {
            within("nothing is left", carrying).await.expect("join");
        }
    }
}

#[tokio::test]
async fn a_reader_that_pauses_is_sent_its_credit_and_no_more() {
    for length in [1, RELAY_CHUNK] {
        let ((mut reader, _writer), (_incoming, outgoing), _carrying) = whole(RELAY_CREDIT);
        let piece = Bytes::from(vec![7; length]);
        let mut sent = 0;
        while let Ok(given) = timeout(STUCK, outgoing.send(piece.clone())).await {
            given.expect("open");
            sent += 1;
        }
        // Besides what the peer queues: a piece in the channel and in the hand.
        let queued = RELAY_CREDIT as usize / length.max(SHORT);
        assert!((queued..=queued + 2).contains(&sent), "{sent} of {length} bytes");
        // It goes on where it paused.
        let mut read = 0;
        while read < sent * length {
            read += within("what was sent", reader.recv()).await.expect("open").expect("data").len();
        }
        within("room again", outgoing.send(piece)).await.expect("open");
    }
}

#[tokio::test]
async fn frames_are_read_although_nobody_reads_the_data() {
    // Else the credit behind them would not arrive, and two programs that write before they read would stop for good.
    let mut half = half(RELAY_CHUNK as u32);
    for _ in 0..RELAY_CREDIT as usize / RELAY_CHUNK {
        within("it reads", half.say.send(Ok(data_frame(chunk())))).await.expect("open");
    }
    half.outgoing.send(chunk()).await.expect("open");
    assert!(matches!(within("a chunk", half.heard.recv()).await.expect("open").payload, Some(Payload::Data(_))));
    half.outgoing.send(chunk()).await.expect("open");
    assert!(timeout(STUCK, half.heard.recv()).await.is_err(), "sent without credit");
    let credit = RelayFrame { credit: RELAY_CHUNK as u32, ..RelayFrame::default() };
    within("it reads", half.say.send(Ok(credit))).await.expect("open");
    assert!(matches!(within("a chunk", half.heard.recv()).await.expect("open").payload, Some(Payload::Data(_))));
}

#[tokio::test]
async fn credit_is_given_for_what_was_taken_and_no_more() {
    let mut half = half(RELAY_CREDIT);
    let mut given = 0;
    for _ in 0..2 {
        for _ in 0..2 {
            within("it reads", half.say.send(Ok(data_frame(chunk())))).await.expect("open");
        }
        for _ in 0..2 {
            within("a chunk", half.incoming.recv()).await.expect("open").expect("data");
        }
        while let Ok(frame) = timeout(STUCK, half.heard.recv()).await {
            given += frame.expect("open").credit as usize;
        }
    }
    assert_eq!(given, 4 * RELAY_CHUNK);
}

#[tokio::test]
async fn what_came_before_a_good_end_can_be_taken_long_after_it() {
    let mut half = half(RELAY_CREDIT);
    drop(half.outgoing);
    within("it reads", half.say.send(Ok(data_frame(chunk())))).await.expect("open");
    let end = RelayFrame { end: true, ..RelayFrame::default() };
    within("it reads", half.say.send(Ok(end))).await.expect("open");
    drop(half.say);
    while within("its own end", half.heard.recv()).await.is_some() {}
    within("nothing is left", half.carrying).await.expect("join");
    let data = half.incoming.recv().await.expect("open").expect("data");
    assert_eq!(data.len(), RELAY_CHUNK);
    assert!(half.incoming.recv().await.is_none());
}

#[tokio::test]
async fn whoever_breaks_the_rules_ends_the_relay() {
    let flood = std::iter::repeat_n(data_frame(chunk()), RELAY_CREDIT as usize / RELAY_CHUNK + 3).collect();
    let credit = RelayFrame { credit: u32::MAX, ..RelayFrame::default() };
    let init = RelayFrame { payload: Some(Payload::Init(Default::default())), ..RelayFrame::default() };
    let long = data_frame(Bytes::from(vec![7; RELAY_CHUNK + 1]));
    for (what, frames, message) in [
        ("a flood", flood, "more was sent than there was credit for"),
        ("no sane credit", vec![credit], "more credit was given than anybody can use"),
        ("a second start", vec![init], "a relay begins once"),
        ("a long frame", vec![long], "a frame is longer than any may be"),
        ("nothing", vec![RelayFrame::default()], "a frame has nothing in it"),
    ] {
        let frames: Vec<RelayFrame> = frames;
        let mut half = half(RELAY_CREDIT);
        for frame in frames {
            let _ = timeout(STUCK, half.say.send(Ok(frame))).await;
        }
        let why = loop {
            match within(what, half.incoming.recv()).await.unwrap_or_else(|| panic!("{what}: a good end")) {
                Ok(_) => {}
                Err(status) => break status,
            }
        };
        assert_eq!(why.message(), message);
        within("the user hears of it", half.outgoing.closed()).await;
        within("nothing is left", half.carrying).await.expect("join");
    }
}

#[tokio::test]
async fn what_came_before_a_peer_went_is_delivered_and_the_break_is_told() {
    for reset in [false, true] {
        let mut half = half(RELAY_CREDIT);
        for _ in 0..2 {
            within("it reads", half.say.send(Ok(data_frame(chunk())))).await.expect("open");
        }
        if reset {
            within("it reads", half.say.send(Err(Status::aborted("reset")))).await.expect("open");
        }
        drop(half.say);
        within("the user hears of it", half.outgoing.closed()).await;
        for _ in 0..2 {
            let data = within("what came before", half.incoming.recv()).await.expect("open").expect("data");
            assert_eq!(data.len(), RELAY_CHUNK);
        }
        let why = within("the break", half.incoming.recv()).await.expect("open").expect_err("no good end");
        assert_eq!(why.message(), if reset { "reset" } else { "it broke off before its end" });
        assert!(within("the end", half.incoming.recv()).await.is_none());
        within("nothing is left", half.carrying).await.expect("join");
    }
}

#[tokio::test]
async fn a_piece_does_not_keep_the_message_that_it_came_in() {
    let half = half(RELAY_CREDIT);
    let message = Bytes::from(vec![7; 1 << 17]);
    for _ in 0..2 {
        let piece = message.slice(..RELAY_CHUNK);
        let frame = RelayFrame { payload: Some(Payload::Data(piece)), ..RelayFrame::default() };
        within("it reads", half.say.send(Ok(frame))).await.expect("open");
    }
    let free = async {
        while !message.is_unique() {
            tokio::task::yield_now().await;
        }
    };
    within("the message is free", free).await;
    drop(half.incoming);
}

#[tokio::test]
async fn where_nobody_counts_a_frame_may_be_longer_than_the_room() {
    let mut half = half(0);
    let long = data_frame(Bytes::from(vec![7; 2 * RELAY_CREDIT as usize]));
    for _ in 0..3 {
        within("it reads", half.say.send(Ok(long.clone()))).await.expect("open");
        let data = within("all of it", half.incoming.recv()).await.expect("open").expect("data");
        assert_eq!(data.len(), 2 * RELAY_CREDIT as usize);
    }
    drop(half.say);
    assert!(within("the end", half.incoming.recv()).await.is_none());
}

#[tokio::test]
async fn a_silent_user_does_not_keep_a_relay_whose_peer_has_gone() {
    let half = half(RELAY_CREDIT);
    drop(half.heard);
    within("the user hears of it", half.outgoing.closed()).await;
    drop(half.incoming);
    within("nothing is left", half.carrying).await.expect("join");
}

#[tokio::test]
async fn what_was_given_before_both_were_dropped_is_sent() {
    let mut half = half(RELAY_CREDIT);
    half.outgoing.send(Bytes::from_static(b"farewell")).await.expect("open");
    drop((half.outgoing, half.incoming));
    let said = within("the last words", half.heard.recv()).await.expect("open");
    assert_eq!(said.payload, Some(Payload::Data(Bytes::from_static(b"farewell"))));
    assert!(within("the end", half.heard.recv()).await.expect("open").end);
    // Else the stream would be reset with it.
    assert!(within("nothing more", half.heard.recv()).await.is_none());
    assert!(!half.carrying.is_finished());
    drop(half.say);
    within("nothing is left", half.carrying).await.expect("join");
}

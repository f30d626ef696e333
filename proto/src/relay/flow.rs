//! How much of a relay may be on its way: an account of its own for each direction.
//!
//! All relays of a sandbox share one HTTP/2 connection and its window. What an application does not read stays in that
//! window, so a few readers that have paused would stop everybody else, the connection's `Sync` among them. Both ends
//! therefore always read, into a queue as long as the credit that they gave, and give more as the queue is emptied.
//!
//! Ends that name a credit in `RelayOpen` and `RelayInit` are held to it. Where one of them does not, the window of the
//! HTTP/2 stream does the same work, and the end of the stream is the end of what it carries. Credit still has to go
//! back after that end, which is therefore a frame of its own where both count.

use prost::bytes::Bytes;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::timeout;
use tokio_stream::{Stream, StreamExt as _};
use tonic::Status;

use super::{SHORT, data_frame, without_data};
use crate::budget::{RELAY_CHUNK, RELAY_CREDIT, UNARY};
use crate::openshell::v1::RelayFrame;
use crate::openshell::v1::relay_frame::Payload;

/// What is read is given back from this many bytes on, not byte by byte.
const GIVEN_BACK: u32 = RELAY_CREDIT / 4;
/// More than anybody has a queue for.
const CREDIT_MAX: usize = 64 << 20;

// Whoever waits for the peer to read does not wait for ever: a chunk fits into what is never held back.
const _: () = assert!(RELAY_CHUNK as u32 + GIVEN_BACK <= RELAY_CREDIT);

/// What comes out of the other end, until it is closed; after an error nothing comes.
pub type Incoming = mpsc::Receiver<Result<Bytes, Status>>;
/// What goes to the other end. Dropped, it says that no more comes; it is closed once the other end has gone.
pub type Outgoing = mpsc::Sender<Bytes>;

/// One end of a relay for whoever carries it.
#[derive(Debug)]
pub struct End {
    incoming: mpsc::Sender<Result<Bytes, Status>>,
    outgoing: mpsc::Receiver<Bytes>,
}

/// An end, and the two directions of whoever uses it.
pub fn end() -> (End, Incoming, Outgoing) {
    // What waits, waits in `carry`.
    let (incoming, reader) = mpsc::channel(1);
    let (writer, outgoing) = mpsc::channel(1);
    (End { incoming, outgoing }, reader, writer)
}

/// Carries until both directions have ended. A user who drops [`Incoming`] wants no more of it; what they have given to
/// [`Outgoing`] is still sent. `credit` is what the peer began with, in bytes, and 0 where it does not count; a peer
/// that does has got [`RELAY_CREDIT`].
pub async fn carry(
    end: End,
    frames: impl Stream<Item = Result<RelayFrame, Status>> + Unpin,
    peer: mpsc::Sender<RelayFrame>,
    credit: u32,
) {
    let flow = Flow {
        counted: credit > 0,
        room: Semaphore::new(RELAY_CREDIT as usize),
        credit: Semaphore::new(CREDIT_MAX.min(credit as usize)),
        gone: Notify::new(),
    };
    let (queue, queued) = mpsc::unbounded_channel();
    let giving = flow.counted.then(|| peer.clone());
    let receiving = flow.receive(frames, queue);
    let both = async { tokio::join!(flow.send(end.outgoing, peer), flow.deliver(queued, end.incoming, giving)) };
    tokio::pin!(receiving, both);
    tokio::select! {
        _ = &mut both => {
            // A stream that is dropped before its end is reset, and what waits to be sent is lost.
            let _ = timeout(UNARY, receiving).await;
        }
        () = &mut receiving => {
            both.await;
        }
    }
}

struct Flow {
    /// Whether both ends count.
    counted: bool,
    /// What the queue still takes.
    room: Semaphore,
    /// What the peer still takes.
    credit: Semaphore,
    /// The peer takes nothing any more.
    gone: Notify,
}

impl Flow {
    /// Reads whatever comes, to the end of the stream.
    async fn receive(
        &self,
        mut frames: impl Stream<Item = Result<RelayFrame, Status>> + Unpin,
        queue: mpsc::UnboundedSender<Result<Bytes, Status>>,
    ) {
        let mut queue = Some(queue);
        let broken = loop {
            let received = match frames.next().await {
                Some(Ok(frame)) => self.take(frame, &mut queue).await,
                Some(Err(status)) => Err(status),
                None if self.counted => Err(Status::aborted("it broke off before its end")),
                // The end of the stream is that of the data.
                None => return,
            };
            if let Err(status) = received {
                break status;
            }
        };
        // After an end there is nobody to tell.
        if let Some(queue) = queue {
            let _ = queue.send(Err(broken));
        }
        self.gone.notify_one();
    }

    async fn take(
        &self,
        frame: RelayFrame,
        queue: &mut Option<mpsc::UnboundedSender<Result<Bytes, Status>>>,
    ) -> Result<(), Status> {
        if self.credit.available_permits() + frame.credit as usize > CREDIT_MAX {
            return Err(Status::out_of_range("more credit was given than anybody can use"));
        }
        self.credit.add_permits(frame.credit as usize);
        match frame.payload {
            Some(Payload::Data(data)) => {
                let Some(queue) = queue else { return Err(Status::data_loss("data came after the end")) };
                if self.counted && data.len() > RELAY_CHUNK {
                    return Err(Status::out_of_range("a frame is longer than any may be"));
                }
                let charge = charge(&data);
                let room = match self.counted {
                    true => self.room.try_acquire_many(charge).ok(),
                    false => self.room.acquire_many(charge).await.ok(),
                };
                room.ok_or_else(|| Status::resource_exhausted("more was sent than there was credit for"))?.forget();
                // A slice keeps the whole message in memory, with whatever else the peer put into it.
                let _ = queue.send(Ok(Bytes::copy_from_slice(&data)));
            }
            Some(Payload::Init(_)) => return Err(Status::data_loss("a relay begins once")),
            None if frame.credit == 0 && !frame.end => return Err(Status::data_loss("a frame has nothing in it")),
            None => {}
        }
        if frame.end {
            *queue = None;
        }
        Ok(())
    }

    /// Hands over what was received, and gives credit for it.
    async fn deliver(
        &self,
        mut queued: mpsc::UnboundedReceiver<Result<Bytes, Status>>,
        incoming: mpsc::Sender<Result<Bytes, Status>>,
        peer: Option<mpsc::Sender<RelayFrame>>,
    ) {
        let mut owed = 0;
        loop {
            let next = tokio::select! {
                biased;
                () = incoming.closed() => return,
                // Never waited for alone: a peer that is gone takes none, and what it sent before is delivered.
                Some(given) = reserve(peer.as_ref()), if owed >= GIVEN_BACK => {
                    given.send(without_data(RelayFrame { credit: owed, ..RelayFrame::default() }));
                    owed = 0;
                    continue;
                }
                next = queued.recv() => next,
            };
            let Some(next) = next else { return };
            let charge = next.as_ref().map_or(0, charge);
            if incoming.send(next).await.is_err() {
                return;
            }
            self.room.add_permits(charge as usize);
            if self.counted {
                owed += charge;
            }
        }
    }

    /// Sends what the user gives, as the peer has room for it.
    async fn send(&self, mut outgoing: mpsc::Receiver<Bytes>, peer: mpsc::Sender<RelayFrame>) {
        let sending = async {
            while let Some(mut bytes) = outgoing.recv().await {
                while !bytes.is_empty() {
                    let piece = bytes.split_to(bytes.len().min(RELAY_CHUNK));
                    if self.counted
                        && let Ok(credit) = self.credit.acquire_many(charge(&piece)).await
                    {
                        credit.forget();
                    }
                    if peer.send(data_frame(piece)).await.is_err() {
                        return;
                    }
                }
            }
            if self.counted {
                let _ = peer.send(without_data(RelayFrame { end: true, ..RelayFrame::default() })).await;
            }
        };
        tokio::select! {
            () = sending => {}
            // A user who says nothing must not keep a relay whose other end has gone.
            () = self.gone.notified() => {}
            () = peer.closed() => {}
        }
    }
}

async fn reserve(peer: Option<&mpsc::Sender<RelayFrame>>) -> Option<mpsc::Permit<'_, RelayFrame>> {
    peer?.reserve().await.ok()
}

/// What a frame costs. Where nobody counts, one may be longer than all the room there is.
fn charge(data: &Bytes) -> u32 {
    data.len().clamp(SHORT, RELAY_CREDIT as usize).try_into().unwrap_or(RELAY_CREDIT)
}

#[cfg(test)]
mod tests {
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
            while timeout(STUCK, outgoing.send(piece.clone())).await.is_ok() {
                sent += 1;
            }
            // Besides what the peer queues: a piece in each channel and in each hand.
            let most = RELAY_CREDIT as usize / length.max(SHORT) + 4;
            assert!(sent <= most && sent + 6 >= most, "{sent} of {length} bytes");
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
        // One of them is in the user's hand.
        assert_eq!(within("credit", half.heard.recv()).await.expect("open").credit, RELAY_CHUNK as u32);
        half.outgoing.send(chunk()).await.expect("open");
        assert!(matches!(within("a chunk", half.heard.recv()).await.expect("open").payload, Some(Payload::Data(_))));
        half.outgoing.send(chunk()).await.expect("open");
        assert!(timeout(STUCK, half.heard.recv()).await.is_err(), "sent without credit");
        let credit = RelayFrame { credit: RELAY_CHUNK as u32, ..RelayFrame::default() };
        within("it reads", half.say.send(Ok(credit))).await.expect("open");
        assert!(matches!(within("a chunk", half.heard.recv()).await.expect("open").payload, Some(Payload::Data(_))));
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
}

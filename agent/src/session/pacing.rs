//! Small writes to a silent peer are held back and sent together.
//!
//! What the agent writes goes into the send buffer of a unix socket, and the vmm's only event loop blocks where that
//! is full: the whole VM stands still. The HTTP/2 window bounds the bytes on their way, but the kernel charges the
//! buffer by packet, a line of ten bytes like one of 500. So a peer that has gone silent, and may have stopped to
//! read, is sent few packets: whole pages at once, which the window bounds, and smaller rests at growing intervals.
//! A peer that answers is never kept waiting.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// As much as is cheap to send: the kernel charges a packet of whole pages with little more than its length.
const PAGE: usize = 4096;
/// What is taken before the stream has taken it.
const HELD_MAX: usize = 8 * PAGE;
/// The shortest pause between two small packets to a silent peer.
const GAP_MIN: Duration = Duration::from_millis(20);
/// Charged to the socket by small packets before pauses begin: a few words in a row are not delayed.
const FREE: usize = 8 * 1024;
/// Charged by small packets before pauses grow steeply.
const SPARE: usize = 40 * 1024;

/// What Linux charges a unix socket's send buffer with for a packet of less than a page: `sk_buff`, and data with
/// shared info rounded up to a power of two; from where that exceeds a page, data goes into a page of its own.
const fn charge(len: usize) -> usize {
    const SK_BUFF: usize = 256;
    const SHARED_INFO: usize = 320;
    const HEAD_MIN: usize = 512;
    match len {
        0 => 0,
        1..=3776 => {
            let head = (len + SHARED_INFO).next_power_of_two();
            SK_BUFF + if head < HEAD_MIN { HEAD_MIN } else { head }
        }
        _ => SK_BUFF + HEAD_MIN + PAGE,
    }
}

/// The pause after a small packet, `silence` after the last byte from the peer, with so much charged since then.
fn gap(silence: Duration, charged: usize) -> Duration {
    if charged <= FREE {
        Duration::ZERO
    } else if charged <= SPARE {
        GAP_MIN.max(silence / 16)
    } else {
        GAP_MIN.max(silence)
    }
}

/// When to send, from what happened so far.
#[derive(Debug)]
struct Pace {
    heard: bool,
    last_read: Instant,
    last_write: Instant,
    /// By small packets since the last byte from the peer.
    charged: usize,
}

impl Pace {
    /// The first packet goes at once.
    fn new(now: Instant) -> Self {
        Self { heard: true, last_read: now, last_write: now, charged: 0 }
    }

    fn read(&mut self, now: Instant) {
        (self.heard, self.last_read, self.charged) = (true, now, 0);
    }

    fn wrote(&mut self, len: usize, now: Instant) {
        (self.heard, self.last_write) = (false, now);
        self.charged += charge(len % PAGE);
    }

    /// When less than a page may be sent.
    fn due(&self) -> Instant {
        match self.heard {
            true => self.last_read,
            false => self.last_write + gap(self.last_write - self.last_read, self.charged),
        }
    }

    /// How many of so many bytes may be sent now.
    fn allowance(&self, held: usize, now: Instant) -> usize {
        if now >= self.due() { held } else { held - held % PAGE }
    }
}

/// A stream for an HTTP/2 connection, which reads and writes in one task and flushes whenever it is woken.
/// Therefore `poll_flush` is ready although bytes are held back: waiting would keep the connection from adding
/// frames to them. It has the task woken once they are due.
pub(super) struct Paced<S> {
    stream: S,
    held: BytesMut,
    pace: Pace,
    timer: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncWrite + Unpin> Paced<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, held: BytesMut::new(), pace: Pace::new(Instant::now()), timer: None }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, len: usize) -> Poll<io::Result<()>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.held[..len]))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.held.advance(written);
        self.pace.wrote(written, Instant::now());
        Poll::Ready(Ok(()))
    }

    /// Sends what may be sent.
    fn poll_send_allowed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match self.pace.allowance(self.held.len(), Instant::now()) {
                0 => return Poll::Ready(Ok(())),
                len => ready!(self.poll_send(cx, len))?,
            }
        }
    }

    /// Ready once the rest may be sent.
    fn poll_due(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let due = self.pace.due();
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if timer.deadline() != due {
            timer.as_mut().reset(due);
        }
        timer.as_mut().poll(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            self.pace.read(Instant::now());
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.held.len() >= HELD_MAX {
            ready!(self.poll_send_allowed(cx))?;
        }
        let taken = buf.len().min(HELD_MAX - self.held.len());
        self.held.extend_from_slice(&buf[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_send_allowed(cx))?;
            if self.held.is_empty() || self.poll_due(cx).is_pending() {
                return Pin::new(&mut self.stream).poll_flush(cx);
            }
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let len = self.held.len();
            ready!(self.poll_send(cx, len))?;
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use proto::budget;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::time::timeout;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    #[test]
    fn pauses_grow_with_silence_and_charge() {
        let ms = Duration::from_millis;
        for (silence, charged, wanted) in [
            (ms(0), 0, ms(0)),
            (ms(40_000), FREE, ms(0)),
            (ms(0), FREE + 1, ms(20)),
            (ms(320), FREE + 1, ms(20)),
            (ms(960), FREE + 1, ms(60)),
            (ms(1600), SPARE, ms(100)),
            (ms(0), SPARE + 1, ms(20)),
            (ms(1600), SPARE + 1, ms(1600)),
        ] {
            assert_eq!(gap(silence, charged), wanted, "{silence:?} {charged}");
        }
    }

    #[test]
    fn a_packet_is_charged_as_linux_does() {
        for (len, wanted) in
            [(0, 0), (1, 768), (192, 768), (193, 1280), (704, 1280), (705, 2304), (3776, 4352), (3777, 4864)]
        {
            assert_eq!(charge(len), wanted, "{len}");
        }
    }

    /// How many packets of one length leave in so long a silence, if there is always another one.
    fn packets_in_silence(len: usize, silence: Duration) -> usize {
        let began = Instant::now();
        let mut pace = Pace::new(began);
        let mut count = 0;
        let mut now = began;
        while now - began <= silence {
            assert_eq!(pace.allowance(len, now), len);
            pace.wrote(len, now);
            count += 1;
            now = pace.due();
        }
        count
    }

    #[test]
    fn no_length_of_packets_fills_the_socket_in_silence() {
        // For as long as it takes the agent to give the session up, and the HTTP/2 window full besides.
        let silence = budget::heartbeat(budget::TTL_MAX) * budget::HEARTBEATS_MISSED;
        let window = budget::VM_CONNECTION_WINDOW as usize;
        for len in 1..PAGE {
            let packets = packets_in_silence(len, silence);
            // The shortest may be frames that no window counts.
            let windowed = if len <= 192 { 0 } else { packets * len };
            let pages = window.saturating_sub(windowed).div_ceil(PAGE);
            let charged = packets * charge(len) + pages * (PAGE + charge(1));
            assert!(charged < budget::VMM_SOCKET_BUFFER as usize, "{packets} packets of {len} bytes charge {charged}");
        }
    }

    #[test]
    fn a_second_of_short_packets_is_not_delayed_much() {
        // Between two answers to pings: no pause is longer than 1/16 of a second.
        assert!(packets_in_silence(192, Duration::from_secs(1)) * charge(192) <= SPARE);
    }

    #[test]
    fn whole_pages_and_answers_go_at_once() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        while pace.due() <= now {
            pace.wrote(10, now);
        }
        assert_eq!(pace.allowance(10, now), 0);
        assert_eq!(pace.allowance(PAGE, now), PAGE);
        assert_eq!(pace.allowance(3 * PAGE - 1, now), 2 * PAGE);
        assert_eq!(pace.allowance(10, pace.due()), 10);
        pace.read(now);
        assert_eq!(pace.allowance(10, now), 10);
    }

    /// As an HTTP/2 connection does: one task, flushed with every wake, until all has been sent.
    async fn drain(paced: &mut Paced<DuplexStream>) {
        poll_fn(|cx| {
            ready!(Pin::new(&mut *paced).poll_flush(cx)).expect("flush");
            if paced.held.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    #[tokio::test]
    async fn small_writes_in_silence_are_sent_together_and_none_is_lost() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        let mut paced = Paced::new(ours);
        let mut sent = Vec::new();
        let mut packets = 0;
        for number in 0..1000 {
            let line = format!("{number}\n");
            paced.write_all(line.as_bytes()).await.unwrap();
            sent.extend(line.into_bytes());
            let before = paced.held.len();
            paced.flush().await.unwrap();
            packets += usize::from(paced.held.len() < before);
        }
        assert!(packets < 20, "{packets} packets");
        timeout(DEADLINE, drain(&mut paced)).await.expect("the rest becomes due");
        paced.write_all(b"end").await.unwrap();
        paced.shutdown().await.unwrap();
        sent.extend(b"end");
        let mut received = Vec::new();
        theirs.read_to_end(&mut received).await.unwrap();
        assert!(received == sent, "{} bytes of {}", received.len(), sent.len());
    }

    #[tokio::test]
    async fn more_than_is_held_passes_a_narrow_stream() {
        let (ours, mut theirs) = tokio::io::duplex(1000);
        let mut paced = Paced::new(ours);
        let sent: Vec<u8> = (0..20 * HELD_MAX + 77).map(|number| (number % 251) as u8).collect();
        let mut received = Vec::new();
        let write = async {
            paced.write_all(&sent).await.unwrap();
            paced.shutdown().await.unwrap();
        };
        let both = async { tokio::join!(write, theirs.read_to_end(&mut received)) };
        timeout(DEADLINE, both).await.expect("all passes").1.unwrap();
        assert!(received == sent, "{} bytes of {}", received.len(), sent.len());
    }

    #[tokio::test]
    async fn ping_pong_is_never_held_back() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 10);
        let mut paced = Paced::new(ours);
        let mut byte = [0];
        for _ in 0..1000 {
            paced.write_all(b"?").await.unwrap();
            paced.flush().await.unwrap();
            assert!(paced.held.is_empty(), "held back");
            theirs.read_exact(&mut byte).await.unwrap();
            theirs.write_all(b"!").await.unwrap();
            paced.read_exact(&mut byte).await.unwrap();
        }
    }
}

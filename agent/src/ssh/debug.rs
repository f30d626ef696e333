//! A channel that carries one call of the agent itself: its answer is output, its refusal error output.

use bytes::Bytes;

use super::exec::{Peer, ended, finish, send};
use super::{DebugAnswer, Services};
use crate::workload::ring::Stream;
use proto::debug::{DebugCall, EXIT_REFUSED, NO_IDENTITY};

/// The call in a subsystem's name; nothing where it is something else.
pub(super) fn answer(services: &Services, subsystem: &str) -> Option<DebugAnswer> {
    let call = DebugCall::decode(subsystem)?;
    let refused = |message: String| -> DebugAnswer { Box::pin(async { Err((message, EXIT_REFUSED)) }) };
    Some(match (call, &services.debug) {
        (Ok(call), Some(debug)) => debug(call),
        (Ok(_), None) => refused(NO_IDENTITY.to_owned()),
        (Err(error), _) => refused(error),
    })
}

/// Carries it. Ends with the answer or with the channel.
pub(super) async fn debug(mut peer: Peer, answer: DebugAnswer) {
    let answered = async {
        let (stream, text, code) = match answer.await {
            Ok(output) => (Stream::Out, output, 0),
            Err((message, code)) => (Stream::Err, format!("{message}\n"), code),
        };
        if send(&peer.writer, stream, Bytes::from(text)).await.is_ok() {
            finish(&peer.writer, code).await;
        }
    };
    tokio::select! {
        () = answered => {}
        () = ended(&mut peer.events) => {}
    }
}

use std::{fs, sync::Arc};

use proto::budget::TTL_MIN;
use rand::{SeedableRng as _, rngs::StdRng};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;
use crate::{
    identity::keys::Signer,
    rotation::{
        clock::SystemClock,
        engine::tests::{Counter, signing_key},
        event::RotationEvent,
        publish::tests::boot_spec,
    },
};

fn rotation() -> (Rotation, UnboundedReceiver<RotationEvent>) {
    let (events, heard) = unbounded_channel();
    let deps = Deps {
        signer: Signer::new(signing_key()),
        gateway_id: Uuid::nil(),
        ttl: TTL_MIN,
        clock: Arc::new(SystemClock),
        rng: StdRng::seed_from_u64(1),
        generations: Arc::new(Counter::default()),
        receipts: Arc::default(),
        events,
    };
    (Rotor::spawn(deps).unwrap(), heard)
}

fn enrolment(sandbox_id: Uuid, root: &tempfile::TempDir) -> Enrolment {
    Enrolment { sandbox_id, directory: root.path().into(), owner: None, boot_spec: boot_spec(sandbox_id) }
}

#[tokio::test]
async fn commands_are_carried_out_when_they_return() {
    let root = tempfile::tempdir_in("/dev/shm").unwrap();
    let (rotation, mut events) = rotation();
    let id = Uuid::from_u128(1);
    let token = || fs::read_to_string(root.path().join("share/sandbox.jwt")).ok();

    let first = rotation.enroll(enrolment(id, &root)).await.unwrap();
    assert_eq!(rotation.published(id), Some(first));
    assert!(root.path().join("share/boot.json").exists());
    let before = token().unwrap();
    assert_eq!(rotation.enroll(enrolment(id, &root)).await, Err(RotationError::AlreadyEnrolled { sandbox_id: id }));

    let second = rotation.rotate_now(id).await.unwrap();
    assert_eq!((second.generation, rotation.published(id)), (first.generation + 1, Some(second)));
    assert_ne!(token().unwrap(), before);
    assert_eq!(events.recv().await, Some(RotationEvent::Published(first)));
    assert_eq!(events.recv().await, Some(RotationEvent::Published(second)));

    rotation.withdraw(id).await.unwrap();
    assert_eq!((token(), rotation.published(id)), (None, None));
    let gone = root.path().join("gone");
    let nowhere = rotation.adopt(id, gone.clone(), None).await.unwrap_err();
    assert!(nowhere.to_string().contains(&gone.display().to_string()), "{nowhere}");
}

#[tokio::test]
async fn the_end_is_in_order_and_can_be_noticed() {
    let root = tempfile::tempdir_in("/dev/shm").unwrap();
    let (rotation, mut events) = rotation();
    let id = Uuid::from_u128(1);
    rotation.enroll(enrolment(id, &root)).await.unwrap();
    let other = rotation.clone();
    rotation.shutdown().unwrap();
    rotation.shutdown().unwrap();
    assert_eq!(other.rotate_now(id).await, Err(RotationError::Stopped));
    assert!(events.recv().await.is_some());
    assert_eq!(events.recv().await, None);
    assert!(root.path().join("share/sandbox.jwt").exists(), "the VM lives on");
}

#[tokio::test]
async fn dropping_the_last_handle_ends_the_thread() {
    let (rotation, mut events) = rotation();
    drop(rotation.clone());
    drop(rotation);
    assert_eq!(events.recv().await, None);
}

#[test]
fn nobody_waits_for_an_abandoned_enrolment() {
    let root = tempfile::tempdir_in("/dev/shm").unwrap();
    let (rotation, mut events) = rotation();
    let (reply, answer) = oneshot::channel();
    drop(answer);
    let command = Command::Enroll(Box::new(enrolment(Uuid::from_u128(1), &root)), reply);
    rotation.0.commands.send(command).unwrap();
    rotation.shutdown().unwrap();
    assert!(matches!(events.blocking_recv(), Some(RotationEvent::Published(_))));
    assert!(!root.path().join("share/sandbox.jwt").exists());
}

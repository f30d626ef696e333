//! Somebody on the host damages an identity directory.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use e2e::wait::until;
use e2e::world::World;
use libtest_mimic::Trial;
use proto::budget;

use crate::{TTL, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("identity::a_damaged_directory_is_healed_and_a_lost_one_replaced", damage)]
}

async fn damage() {
    let world = World::quick(TTL).await;
    let sandbox = world.ready("hurt", &[]).await;
    let file = world.token_file(&sandbox);
    let share = file.parent().expect("the share").to_owned();
    let other = share.join("other");
    let sessions = || fs::read_to_string(world.log()).expect("read the log").matches("session up").count();
    let before = sessions();

    let token = || fs::read(&file).expect("read the token");
    let damages: [(&str, &dyn Fn()); 5] = [
        ("truncated", &|| fs::write(&file, &token()[..100]).expect("truncate")),
        ("emptied, with a stranger beside it", &|| {
            fs::write(&file, "").expect("empty");
            fs::write(&other, "a stranger").expect("write");
        }),
        ("removed", &|| fs::remove_file(&file).expect("remove")),
        ("replaced", &|| {
            fs::write(&other, "another").expect("write");
            fs::rename(&other, &file).expect("replace");
        }),
        ("opened to others", &|| fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("open")),
    ];
    // Well after the audit came round: a rotation alone would heal too, but later.
    let patience = budget::audit_interval(TTL) + Duration::from_secs(2);
    for (what, damage) in damages {
        damage();
        assert!(!sound(&share), "{what}: not damaged");
        let began = Instant::now();
        until(&format!("the token to be healed after it was {what}"), patience, async || sound(&share).then_some(())).await;
        println!("identity: {what}, healed after {:.1} s", began.elapsed().as_secs_f64());
    }
    assert_eq!(sessions(), before, "the session did not notice");
    assert_eq!(world.api().await.sh("hurt", "echo alive").await, "alive\n");

    // A directory that was removed is lost to the guest for ever: it is started again onto a new one.
    fs::rename(&share, world.runtime().join("taken-away")).expect("take the share away");
    fs::create_dir(&share).expect("put another one there");
    let again = world.ready_in_boot("hurt", 2).await;
    assert!(sound(&share));
    assert_eq!(again.status.expect("a status").restart_count, 1);
    assert_eq!(world.api().await.sh("hurt", "echo alive").await, "alive\n");
    world.delete("hurt").await;
    fs::remove_dir_all(world.runtime().join("taken-away")).expect("remove");
    assert_eq!(world.traces(), Vec::<String>::new());
}

/// Two files, and the token is one.
fn sound(share: &std::path::Path) -> bool {
    let file = share.join("sandbox.jwt");
    let names = fs::read_dir(share).into_iter().flatten().flatten().count();
    let regular = file.symlink_metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o7777 == 0o400);
    let token = fs::read_to_string(&file).unwrap_or_default();
    // The last of its three parts is a signature of 64 bytes.
    let whole = token.split('.').count() == 3 && token.rsplit('.').next().is_some_and(|part| part.len() == 86);
    names == 2 && regular && whole
}

//! Whatever somebody does to an identity directory is said, and put right within one round of the audit.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use e2e::wait::until;
use e2e::world::World;
use proto::budget;
use proto::layout::{SHARE_DIR, TOKEN_FILE};
use proto::openshell::v1::{Sandbox, SandboxPhase};

use crate::stage::{SOON, Stage, TTL, accepted, delivered, said, world};

/// One round of the audit, and what a loaded machine takes.
const ROUND: Duration = Duration::from_secs(7 + 5);

/// Puts something else in the place of the token, as its owner could.
fn put(share: &Path, content: &[u8]) {
    let fresh = share.join("fresh");
    fs::write(&fresh, content).expect("write");
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o400)).expect("set permissions");
    let owner = fs::metadata(share).expect("the share");
    chown(&fresh, Some(owner.uid()), Some(owner.gid())).expect("give away");
    fs::rename(&fresh, share.join(TOKEN_FILE)).expect("rename");
}

/// A token of a generation that does not exist yet, whose signature is nobody's.
fn from_the_future(token: &str) -> String {
    let (header, rest) = token.split_once('.').expect("a token");
    let (claims, signature) = rest.split_once('.').expect("a token");
    let decoded = URL_SAFE_NO_PAD.decode(claims).expect("claims");
    let mut claims: serde_json::Value = serde_json::from_slice(&decoded).expect("JSON");
    claims["gen"] = 1_000_000.into();
    format!("{header}.{}.{signature}", URL_SAFE_NO_PAD.encode(claims.to_string()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_file_that_is_not_what_it_should_be_is_healed() {
    let world = world().await;
    let (sandbox, other) = (world.ready("box", &[]).await, world.ready("other", &[]).await);
    let share = world.places(&sandbox).join(SHARE_DIR);
    let older = world.token(&sandbox);
    type Act<'a> = Box<dyn Fn(&str) + 'a>;
    let acts: [(&str, &str, Act<'_>); 7] = [
        ("truncated", "sandbox.jwt had another content", Box::new(|token| put(&share, &token.as_bytes()[..40]))),
        ("emptied", "sandbox.jwt had another content", Box::new(|_| put(&share, b""))),
        ("missing", "sandbox.jwt was missing", Box::new(|_| fs::remove_file(share.join(TOKEN_FILE)).expect("remove"))),
        ("foreign", "sandbox.jwt had another content", Box::new(|_| put(&share, world.token(&other).as_bytes()))),
        ("older", "sandbox.jwt had another content", Box::new(|_| put(&share, older.as_bytes()))),
        (
            "from the future",
            "sandbox.jwt had another content",
            Box::new(|token| put(&share, from_the_future(token).as_bytes())),
        ),
        (
            "a symlink",
            "sandbox.jwt was not a regular file",
            Box::new(|_| {
                fs::remove_file(share.join(TOKEN_FILE)).expect("remove");
                symlink("/etc/hostname", share.join(TOKEN_FILE)).expect("link");
            }),
        ),
    ];
    for (what, words, act) in acts {
        let done = world.openshell(&["token", "refresh", "box"]).await;
        assert!(done.status.success(), "{done:?}");
        delivered(&world, "box", &format!("before it is {what}")).await;
        let before = said(&world, words);
        // A rotation that comes first puts it right as well, and says nothing: then once more.
        while said(&world, words) == before {
            let good = world.token(&sandbox);
            act(&good);
            let bad = fs::read(share.join(TOKEN_FILE)).ok();
            until(&format!("the gateway to say of a token that is {what}: {words}"), ROUND, async || {
                let replaced = bad != fs::read(share.join(TOKEN_FILE)).ok();
                (said(&world, words) > before || (replaced && world.token(&sandbox) != good)).then_some(())
            })
            .await;
        }
        until(&format!("a token in the place of one that is {what}"), SOON, async || {
            share.join(TOKEN_FILE).is_file().then_some(())
        })
        .await;
        let healed = world.token(&sandbox);
        assert!(accepted(&world, &sandbox, &healed).await, "{what}: what is in its place now is not good");
        let done = world.openshell(&["token", "refresh", "box"]).await;
        assert!(done.status.success(), "{done:?}");
        delivered(&world, "box", &format!("after it was {what}")).await;
    }
    let status = world.api().await.get("box").await.expect("it exists").status.expect("a status");
    assert!(status.main_process_instance_id.starts_with("1-"), "restarted: {status:?}");
    world.delete("box").await;
    world.delete("other").await;
}

fn condition(sandbox: &Sandbox) -> Option<(String, String)> {
    let conditions = &sandbox.status.as_ref()?.conditions;
    let found = conditions.iter().find(|condition| condition.r#type == "TokenPublished")?;
    Some((found.reason.clone(), found.message.clone()))
}

fn mount(arguments: &[&str]) -> bool {
    Command::new("mount").args(arguments).status().is_ok_and(|status| status.success())
}

#[allow(clippy::print_stdout, reason = "a test that could not run says so")]
fn say(words: &str) {
    println!("{words}");
}

/// The runtime directory on a file system of its own, which can be filled; unmounted when dropped.
struct OwnTmpfs(std::path::PathBuf);

impl Drop for OwnTmpfs {
    fn drop(&mut self) {
        // Lazily: a gateway that is still ending holds it.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_directory_is_a_condition_until_there_is_room() {
    let mut world = Stage::empty().await;
    let runtime = world.runtime().display().to_string();
    if !mount(&["-t", "tmpfs", "-o", "size=4m,mode=0700", "tmpfs", &runtime]) {
        say("not run: this process may not mount a tmpfs of its own");
        return;
    }
    let _mounted = OwnTmpfs(world.runtime().into());
    let boot = fs::read("/proc/sys/kernel/random/boot_id").expect("read the boot id");
    fs::write(world.runtime().join("kvm-works"), boot).expect("write that KVM works");
    world.up().await;
    let sandbox = world.ready("box", &[]).await;
    let filling = world.runtime().join("filling");
    // To the last page; how far it comes does not matter.
    drop(fs::write(&filling, vec![0; 8 << 20]));
    publishing_fails_until(&world, &sandbox, "No space left on device", || {
        fs::remove_file(&filling).expect("make room");
    })
    .await;
    world.delete("box").await;
}

/// What no write reaches, whatever the file system itself allows: a read-only share looks like this to the gateway.
struct Immutable(std::path::PathBuf);

impl Immutable {
    fn of(directory: &Path) -> Option<Self> {
        chattr("+i", directory).then(|| Self(directory.into()))
    }
}

impl Drop for Immutable {
    fn drop(&mut self) {
        chattr("-i", &self.0);
    }
}

fn chattr(flag: &str, directory: &Path) -> bool {
    Command::new("chattr").arg(flag).arg(directory).output().is_ok_and(|done| done.status.success())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_cannot_be_written_is_a_condition_until_it_can() {
    let world = world().await;
    let sandbox = world.ready("box", &[]).await;
    let share = world.places(&sandbox).join(SHARE_DIR);
    let Some(immutable) = Immutable::of(&share) else {
        say(
            "not run: the tmpfs of this kernel has no immutable directories (Linux 6.6 does), or this user may not make one",
        );
        return;
    };
    publishing_fails_until(&world, &sandbox, "Operation not permitted", || drop(immutable)).await;
    world.delete("box").await;
}

/// A refresh says why it failed and that the old token stays, and so does a condition, until `mended`.
async fn publishing_fails_until(world: &World, sandbox: &Sandbox, cause: &str, mended: impl FnOnce()) {
    let refused = world.openshell(&["token", "refresh", "box"]).await;
    assert!(!refused.status.success(), "presented as success: {refused:?}");
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert!(stderr.contains(cause) && stderr.contains("the old token stays"), "{stderr}");
    let (reason, message) = condition(&world.api().await.get("box").await.expect("it exists")).expect("a condition");
    assert!(reason == "PublishFailed" && message.contains(cause), "{reason}: {message}");
    assert!(accepted(world, sandbox, &world.token(sandbox)).await, "the old token is good");
    mended();
    until("a token once it can be written", SOON, async || {
        condition(&world.api().await.get("box").await.ok()?).is_none().then_some(())
    })
    .await;
    delivered(world, "box", "once it can be written").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_lost_has_the_sandbox_restarted_before_its_token_ends() {
    let world = world().await;
    let sandbox = world.ready("box", &[]).await;
    let share = world.places(&sandbox).join(SHARE_DIR);
    let removed = || fs::remove_dir_all(&share).expect("remove");
    let replaced = || {
        fs::rename(&share, share.with_extension("away")).expect("move away");
        fs::create_dir(&share).expect("replace");
    };
    let acts: [(&str, &dyn Fn()); 2] = [("removed", &removed), ("replaced", &replaced)];
    for (boot, (what, act)) in (2..).zip(acts) {
        let began = Instant::now();
        act();
        world.ready_in_boot("box", boot).await;
        let took = began.elapsed();
        assert!(took < TTL - budget::rotate_until(TTL), "{what}: {took:?} is later than the end of the last token");
        assert_eq!(said(&world, "IdentityDirectoryLost"), boot as usize - 1, "{what}: not said, or said twice");
        delivered(&world, "box", &format!("after the directory was {what}")).await;
    }
    world.phase("box", SandboxPhase::Ready).await;
    world.delete("box").await;
    assert_eq!(world.traces(), Vec::<String>::new());
}

//! A hostile workload looks for anything that has the shape of a token, wherever a program of its uid can look; again
//! as root of a user namespace of its own; and as the root that `exec -u root` is.

use std::process::{Command, Stdio};
use std::time::Duration;

use e2e::api::{Api, collect};
use e2e::programs::{guest_probe, program};
use e2e::wait::until;
use e2e::world::World;
use libtest_mimic::Trial;
use proto::openshell::v1::ExecSandboxRequest;

use crate::{TTL, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("hunt::a_hostile_workload_finds_no_token_anywhere", hunt),
        trial("hunt::what_root_makes_the_kernel_start_finds_none_either", helper),
    ]
}

/// One line for each find. `plant` puts a token where a search has to find it: a search that finds nothing at all
/// would prove nothing.
const SEARCH: &str = r#"
    pattern='eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{80,}'
    look() { grep -aEo "$pattern" | sort -u | cut -c1-20 | sed "s|^|$1: |"; }
    memory() {
        grep -E '^[0-9a-f]+-[0-9a-f]+ rw' $1/maps | while read range rest; do
            from=$((0x${range%-*} / 4096)); to=$((0x${range#*-} / 4096))
            dd if=$1/mem bs=4096 skip=$from count=$((to - from))
        done
    }
    env | look environment
    cat /proc/[0-9]*/environ | tr '\0' '\n' | look environments
    cat /proc/[0-9]*/cmdline | tr '\0' '\n' | look 'command lines'
    for process in /proc/[0-9]*; do memory $process | look memory; done
    timeout 5 cat /proc/[0-9]*/fd/[3-9]* | look descriptors
    ls /proc/[0-9]*/fd/ -l | grep -E 'identity|auth|boot.json' | sed 's/^/descriptor: /'
    cat /proc/cmdline /proc/self/mountinfo /proc/net/* | look /proc
    find /sys/class /sys/devices/virtual /sys/kernel /sys/module -maxdepth 4 -type f -perm -004 -exec cat {} + | look /sys
    find /tmp /run /dev/shm /var /etc /home /root /opt -xdev -type f -size -1024k -exec cat {} + | look files
    find / -xdev -name 'core*' -type f -size +1M | grep -v /usr/ | sed 's/^/core file: /'
    grep -E ' identity | /etc/openshell' /proc/self/mountinfo | sed 's/^/mount: /'
    # A socket with a name is a door of somebody.
    sed 1d /proc/net/unix | while read number count protocol flags type state inode name; do
        [ -z "$name" ] || echo "socket: $name"
    done
    dmesg > /tmp/log && [ -s /tmp/log ] && echo 'kernel log: by dmesg'
    head -c1 /dev/kmsg | grep -q . && echo 'kernel log: by /dev/kmsg'
    head -c1 /proc/1/environ | grep -q . && echo 'the environment of PID 1'
    true
"#;

async fn hunt() {
    let world = World::quick(TTL).await;
    let api = world.api().await;
    let sandbox = world.ready("prey", &["/bin/sh", "-c", "sleep 100000; :"]).await;
    // What is looked for has the shape of what there is.
    let segments = world.token(&sandbox).split('.').map(str::len).collect::<Vec<_>>();
    assert!(segments.len() == 3 && segments[..2].iter().all(|length| *length >= 11) && segments[2] >= 80);
    let planted = format!("eyJ{}.eyJ{}.{}", "x".repeat(12), "y".repeat(12), "z".repeat(86));
    for (who, before) in [("uid 1000", ""), ("root of a user namespace", "unshare -Urm ")] {
        let search = format!("exec 2> /dev/null; {SEARCH}");
        let finds = api.exec("prey", &["/bin/sh", "-c", &format!("{before}/bin/sh -c \"$0\""), &search]).await;
        assert_eq!(finds.expect("a search").stdout, "", "{who}");
    }
    let search = format!("exec 2> /dev/null; id -u; {SEARCH}");
    let finds = world.openshell(&["vm", "exec", "-u", "0", "prey", "--", "/bin/sh", "-c", &search]).await;
    assert_eq!(String::from_utf8_lossy(&finds.stdout), "0\n", "root: {finds:?}");
    // In the lab each search has its price: the means are tried with one place of each kind.
    let search = format!("exec 2> /dev/null; echo $planted > /tmp/planted; {SEARCH}");
    // A shell that has something to do after the search stays, with the token on its command line.
    let script = format!("export planted={planted}; /bin/sh -c \"$0\"; true");
    let finds = api.exec("prey", &["/bin/sh", "-c", &script, &search]).await.expect("a search").stdout;
    for place in ["environment", "environments", "command lines", "memory", "files"] {
        assert!(finds.lines().any(|line| line.starts_with(&format!("{place}: eyJxxx"))), "{place}: {finds}");
    }
    world.delete("prey").await;
    assert_eq!(world.traces(), Vec::<String>::new());
}

/// What the kernel starts as root for a core file: it says who it is, and looks where the token is.
const HELPER: &str = "#!/bin/sh
exec > /tmp/said.new 2>&1
cat > /dev/null
echo uid $(id -u)
grep -E '^Cap(Inh|Prm|Eff|Bnd)' /proc/self/status
cat /etc/openshell/auth/* && echo found: a file
grep identity /proc/self/mountinfo && echo found: a mount
/tmp/probe vsock
mkdir -p /tmp/own && timeout 10 mount -t virtiofs identity /tmp/own && cat /tmp/own/* && echo found: by a mount
cat /proc/1/environ /proc/1/root/etc/openshell/auth/* && echo found: by PID 1
echo end
mv /tmp/said.new /tmp/said
";

/// Root of the workload has no capability, and its view of `/proc/sys` is read-only. That of its accomplice, who is not
/// root, is not, and a directory can be lent.
async fn helper() {
    let world = World::quick(TTL).await;
    let api = world.api().await;
    world.ready("prey", &["/bin/sh", "-c", "sleep 100000; :"]).await;
    for (file, content) in [("probe", std::fs::read(guest_probe()).expect("the probe")), ("helper", HELPER.into())] {
        let write = format!("cat > /tmp/{file} && chmod 755 /tmp/{file}");
        let request = ExecSandboxRequest {
            sandbox: "prey".into(),
            command: ["/bin/sh", "-c", &write].map(str::to_owned).to_vec(),
            stdin: content,
            ..Default::default()
        };
        let written = collect(api.client.clone().exec_sandbox(request).await.expect("exec").into_inner()).await;
        assert_eq!(written.expect("an exit").code, 0, "{file}");
    }
    let root =
        async |words: &[&str]| world.openshell(&[&["vm", "exec", "-u", "0", "prey", "--"], words].concat()).await;
    let sockets = root(&["/tmp/probe", "vsock"]).await;
    let sockets = String::from_utf8_lossy(&sockets.stdout).into_owned();
    assert!(sockets.contains("vsock stream: refused") && sockets.contains("unix stream: made"), "{sockets}");

    let accomplice = ["/tmp/probe", "lend", "/proc/sys/kernel", "/tmp/lent"];
    let lending = api.exec_stream("prey", &accomplice).await.expect("exec");
    until("the accomplice", Duration::from_secs(60), async || {
        api.exec("prey", &["/bin/ls", "/tmp/lent"]).await.is_ok_and(|found| found.code == 0).then_some(())
    })
    .await;
    let borrowed = root(&["/tmp/probe", "borrow", "/tmp/lent", "core_pattern", "|/tmp/helper"]).await;
    assert!(borrowed.status.success(), "what this test is about did not happen: {borrowed:?}");
    drop(collect(lending).await);
    api.exec("prey", &["/bin/sh", "-c", "kill -SEGV $$"]).await.expect("its end");
    let said = until("the words of the kernel's helper", Duration::from_secs(60), async || {
        let said = api.exec("prey", &["/bin/cat", "/tmp/said"]).await.ok()?;
        (said.code == 0).then_some(said.stdout)
    })
    .await;
    println!("hunt: the kernel's helper: {said}");
    assert!(said.contains("uid 0\n") && said.ends_with("end\n"), "{said}");
    assert_eq!(said.matches("\t0000000000000000\n").count(), 4, "it has capabilities: {said}");
    assert!(!said.contains("found") && !said.contains("eyJ"), "{said}");
    the_agents_copy_stays(&world, &api).await;
    world.delete("prey").await;
    assert_eq!(world.traces(), Vec::<String>::new());
}

/// Root owns the file in memory from which every program starts, and finds it behind its own SFTP server, which has it
/// open as long as it runs.
async fn the_agents_copy_stays(world: &World, api: &Api) {
    let mut server = Command::new(program("openshell"))
        .args(["vm", "exec", "-u", "0", "prey", "--", "/proc/self/exe", "sftp-server"])
        .env_clear()
        .envs(world.environment())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("start openshell");
    let attack = r#"for exe in /proc/[0-9]*/exe; do
        case "$(readlink $exe)" in *memfd*) chmod 0 $exe && echo changed || echo refused;; esac
    done 2> /dev/null"#;
    let tried = until("the SFTP server", Duration::from_secs(60), async || {
        let tried = world.openshell(&["vm", "exec", "-u", "0", "prey", "--", "/bin/sh", "-c", attack]).await;
        let tried = String::from_utf8_lossy(&tried.stdout).into_owned();
        (!tried.is_empty()).then_some(tried)
    })
    .await;
    assert!(tried.lines().all(|line| line == "refused"), "{tried}");
    assert_eq!(api.sh("prey", "echo starts").await, "starts\n");
    drop(server.stdin.take());
    server.wait().expect("its end");
}

//! Whose process has the other end of a TCP connection within this machine, by the kernel's table of connections.

use std::io;
use std::net::{IpAddr, SocketAddr};

/// The uid of the process that made the connection from `peer` to `local`.
///
/// # Errors
/// The table cannot be read, or the connection is not in it: it does not come from this network namespace.
pub fn loopback_uid(local: SocketAddr, peer: SocketAddr) -> io::Result<u32> {
    // A socket of the newer family may well speak the older protocol: then it stands in the newer table.
    for (file, own, other) in [("/proc/net/tcp", peer, local), ("/proc/net/tcp6", mapped(peer), mapped(local))] {
        let table = std::fs::read_to_string(file)?;
        if let Some(uid) = uid_in(&table, &hex(own), &hex(other)) {
            return Ok(uid);
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "no process of this machine has its other end"))
}

/// The address as a socket of the newer family has it.
fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) => (ip.to_ipv6_mapped(), address.port()).into(),
        IpAddr::V6(_) => address,
    }
}

/// The row of the peer's socket names its own address first.
fn uid_in(table: &str, own: &str, other: &str) -> Option<u32> {
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        (fields.next()? == own && fields.next()? == other).then_some(())?;
        // State, queues, timer and retransmissions come between.
        fields.nth(4)?.parse().ok()
    })
}

/// As the kernel writes an address: each 32-bit word in the order of this machine's bytes.
fn hex(address: SocketAddr) -> String {
    let word = |bytes: &[u8]| format!("{:08X}", u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
    let ip = match address.ip() {
        IpAddr::V4(ip) => word(&ip.octets()),
        IpAddr::V6(ip) => ip.octets().chunks(4).map(word).collect(),
    };
    format!("{ip}:{:04X}", address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_found_by_both_addresses() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
            0: 0100007F:4506 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 1 1 0 20 4 30 10 -1\n   \
            1: 0100007F:C350 0100007F:4506 01 00000000:00000000 00:00000000 00000000  1000        0 2 1 0 20 4 30 10 -1\n";
        assert_eq!(uid_in(table, "0100007F:C350", "0100007F:4506"), Some(1000));
        assert_eq!(uid_in(table, "0100007F:4506", "0100007F:C350"), Some(0));
        assert_eq!(uid_in(table, "0100007F:C351", "0100007F:4506"), None);
    }

    #[tokio::test]
    async fn a_connection_of_this_process_is_this_user_s() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = tokio::net::TcpListener::bind(address).await else {
                eprintln!("not run for {address}: this machine has no such address");
                continue;
            };
            let local = listener.local_addr().unwrap();
            let _client = tokio::net::TcpStream::connect(local).await.unwrap();
            let (stream, peer) = listener.accept().await.unwrap();
            let uid = loopback_uid(stream.local_addr().unwrap(), peer).unwrap();
            assert_eq!(uid, rustix::process::geteuid().as_raw());
        }
        // As gRPC's own library connects.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let local = listener.local_addr().unwrap();
        if let Ok(_client) = tokio::net::TcpStream::connect(mapped(local)).await {
            let (stream, peer) = listener.accept().await.unwrap();
            let uid = loopback_uid(stream.local_addr().unwrap(), peer).unwrap();
            assert_eq!(uid, rustix::process::geteuid().as_raw());
        }
        let nobody = "127.0.0.1:1".parse().unwrap();
        assert!(loopback_uid(nobody, nobody).is_err());
    }
}

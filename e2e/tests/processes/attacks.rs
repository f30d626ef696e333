//! Tokens that somebody made, shown to a running gateway on a sandbox's own socket: all are refused, with the same words.
//!
//! They are signed with the gateway's own key by another library than the gateway's, so that what is refused is refused
//! for what it says; the same without a change is accepted.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD as B64};
use e2e::api::channel;
use e2e::world::World;
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use proto::layout::{CTL_DIR, CTL_SOCKET};
use proto::openshell::v1::{ListSandboxesRequest, Sandbox, open_shell_client::OpenShellClient};
use proto::openshell::vm::v1::{SyncRequest, vm_client::VmClient};
use serde_json::{Value, json};
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::stage::world;

/// What every refused caller hears.
const PUBLIC: &str = "the presented identity is not accepted";
/// Fewer than what closes a connection.
const PER_CONNECTION: usize = 100;

struct Forge {
    key: EncodingKey,
    point: Vec<u8>,
    header: Value,
    claims: Value,
    original: String,
}

impl Forge {
    fn of(world: &World, sandbox: &Sandbox) -> Self {
        let der = |name: &str| {
            let pem = std::fs::read_to_string(world.state().join("jwt").join(name)).expect("a key");
            let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
            STANDARD.decode(body).expect("PEM")
        };
        let (signing, public) = (der("signing.pem"), der("public.pem"));
        let original = world.token(sandbox);
        let part = |number: usize| {
            let text = original.split('.').nth(number).expect("a token");
            serde_json::from_slice(&B64.decode(text).expect("base64")).expect("JSON")
        };
        let (header, claims) = (part(0), part(1));
        // The point itself stands at the end of the document.
        let point = public[public.len() - 32..].to_vec();
        Self { key: EncodingKey::from_ed_der(&signing), point, header, claims, original }
    }

    /// A right signature over whatever this is.
    fn signed(&self, header: &str, claims: &str) -> String {
        let message = format!("{}.{}", B64.encode(header), B64.encode(claims));
        let signature = crypto::sign(message.as_bytes(), &self.key, Algorithm::EdDSA).expect("sign");
        format!("{message}.{signature}")
    }

    fn header(&self, name: &str, value: Value) -> String {
        self.signed(&with(&self.header, name, value), &self.claims.to_string())
    }

    fn claim(&self, name: &str, value: Value) -> String {
        self.signed(&self.header.to_string(), &with(&self.claims, name, value))
    }

    /// A number that JSON libraries would not write.
    fn number(&self, name: &str, text: &str) -> String {
        let claims = with(&self.claims, name, "@".into()).replace("\"@\"", text);
        self.signed(&self.header.to_string(), &claims)
    }

    fn without(&self, name: &str) -> String {
        let mut claims = self.claims.clone();
        claims.as_object_mut().expect("an object").remove(name).expect("a claim");
        self.signed(&self.header.to_string(), &claims.to_string())
    }

    fn attacks(&self, other: &str) -> Vec<(String, String)> {
        let mut all = self.headers();
        all.extend(self.signatures());
        all.extend(self.claims());
        all.extend(self.encodings());
        all.push(("another sandbox's token".to_owned(), other.to_owned()));
        all
    }

    fn headers(&self) -> Vec<(String, String)> {
        let mut all = vec![];
        for alg in ["none", "HS256", "RS256", "ES256", "eddsa"] {
            all.push((format!("alg {alg}"), self.header("alg", alg.into())));
        }
        for kid in ["", "../../jwt/kid", "a\0b", "0123456789abcdef0123456789abcdef"] {
            all.push((format!("kid {kid:?}"), self.header("kid", kid.into())));
        }
        for (name, value) in [
            ("typ", "at+jwt".into()),
            ("jwk", json!({"kty": "OKP"})),
            ("jku", "https://example.com".into()),
            ("x5u", "https://example.com".into()),
            ("crit", json!(["exp"])),
            ("kid", Value::Null),
        ] {
            all.push((format!("header {name} {value}"), self.header(name, value)));
        }
        let twice = self.header.to_string().replacen('{', r#"{"alg":"none","#, 1);
        all.push(("alg twice".to_owned(), self.signed(&twice, &self.claims.to_string())));
        let nested = format!("{}{}", "[".repeat(2000), "]".repeat(2000));
        all.push(("a deep header".to_owned(), self.signed(&nested, &self.claims.to_string())));
        all
    }

    fn signatures(&self) -> Vec<(String, String)> {
        let message = self.original.rsplit_once('.').expect("a token").0;
        let public = EncodingKey::from_secret(&self.point);
        let hmac = crypto::sign(message.as_bytes(), &public, Algorithm::HS256).expect("HMAC");
        let changed = self.claim("jti", json!("x"));
        let changed = changed.rsplit_once('.').expect("a token").0;
        vec![
            ("no signature".to_owned(), format!("{message}.")),
            ("a signature of zeros".to_owned(), format!("{message}.{}", B64.encode([0; 64]))),
            ("a small-order point".to_owned(), format!("{message}.{}", B64.encode(small_order()))),
            ("an HMAC with the public key".to_owned(), format!("{message}.{hmac}")),
            (
                "another message's signature".to_owned(),
                format!("{changed}.{}", self.original.rsplit('.').next().expect("one")),
            ),
        ]
    }

    fn claims(&self) -> Vec<(String, String)> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs();
        let mut all = vec![];
        for name in ["sub", "iss", "aud", "sandbox_id", "iat", "exp", "jti", "gen"] {
            all.push((format!("no {name}"), self.without(name)));
            all.push((format!("{name} null"), self.claim(name, Value::Null)));
        }
        for name in ["iat", "exp", "gen"] {
            for number in ["\"1\"", "1800000030.0", "-1", "18446744073709551616", "1e400"] {
                all.push((format!("{name} {number}"), self.number(name, number)));
            }
        }
        for (name, value) in [
            ("iss", json!("openshell-gateway:00000000-0000-0000-0000-000000000000")),
            ("aud", json!("other")),
            ("aud", json!([self.claims["aud"]])),
            ("sandbox_id", json!("00000000-0000-4000-8000-000000000000")),
            ("iat", json!(now + 3600)),
            ("exp", json!(0)),
            ("exp", json!(now + 10 * 365 * 86_400)),
            ("gen", json!(0)),
            ("scope", json!("admin")),
        ] {
            all.push((format!("{name} {value}"), self.claim(name, value)));
        }
        let twice = self.claims.to_string().replacen('{', "{\"gen\":9,", 1);
        all.push(("gen twice".to_owned(), self.signed(&self.header.to_string(), &twice)));
        all.push(("claims of 9 KB".to_owned(), self.claim("sub", "s".repeat(9 * 1024).into())));
        all
    }

    fn encodings(&self) -> Vec<(String, String)> {
        let token = &self.original;
        vec![
            ("four segments".to_owned(), format!("{token}.x")),
            ("padding".to_owned(), format!("{token}=")),
            ("no token".to_owned(), "x".to_owned()),
            ("two segments".to_owned(), token.rsplit_once('.').expect("a token").0.to_owned()),
        ]
    }
}

fn with(base: &Value, name: &str, value: Value) -> String {
    let mut base = base.clone();
    base.as_object_mut().expect("an object").insert(name.into(), value);
    base.to_string()
}

/// The neutral element as R and 0 as S: valid for any message under a key of small order.
fn small_order() -> [u8; 64] {
    let mut signature = [0; 64];
    signature[0] = 1;
    signature
}

fn request<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    let bearer: AsciiMetadataValue = format!("Bearer {token}").parse().expect("ASCII");
    request.metadata_mut().insert("authorization", bearer);
    request
}

async fn sync(channel: &Channel, token: &str) -> Result<(), Status> {
    VmClient::new(channel.clone()).sync(request(SyncRequest::default(), token)).await.map(drop)
}

async fn connected(socket: &Path, honest: &str) -> Channel {
    let channel = channel(socket).await.expect("connect");
    sync(&channel, honest).await.expect("an honest token");
    channel
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_forged_is_refused_with_the_same_words() {
    let world = world().await;
    let (mine, other) = (world.ready("mine", &[]).await, world.ready("other", &[]).await);
    let socket = world.places(&mine).join(CTL_DIR).join(CTL_SOCKET);
    let forge = Forge::of(&world, &mine);
    let attacks = forge.attacks(&world.token(&other));
    assert!(attacks.len() > 50, "{}", attacks.len());
    for few in attacks.chunks(PER_CONNECTION) {
        let channel = connected(&socket, &world.token(&mine)).await;
        let right = forge.signed(&forge.header.to_string(), &forge.claims.to_string());
        sync(&channel, &right).await.expect("what another library signs is a token");
        for (what, token) in few {
            let status = sync(&channel, token).await.expect_err(what);
            assert_eq!((status.code(), status.message()), (Code::Unauthenticated, PUBLIC), "{what}");
        }
    }
    // So long that it is not even read: it may cost its own connection, and nobody another one.
    let channel = connected(&socket, &world.token(&mine)).await;
    let huge = forge.claim("sub", "s".repeat(1 << 20).into());
    assert!(sync(&channel, &huge).await.is_err());
    let channel = connected(&socket, &world.token(&mine)).await;
    // What is a user's is not a sandbox's, and a deleted sandbox is nobody.
    let list = request(ListSandboxesRequest::default(), &world.token(&mine));
    let status = OpenShellClient::new(channel.clone()).list_sandboxes(list).await.expect_err("a user's");
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    let last = world.token(&mine);
    world.delete("mine").await;
    sync(&channel, &last).await.expect_err("the sandbox is gone");
    let log = std::fs::read_to_string(world.log()).expect("the gateway's log");
    let tokens =
        attacks.iter().filter_map(|(_, token)| token.rsplit('.').next().filter(|signature| signature.len() > 40));
    assert!(tokens.into_iter().all(|signature| !log.contains(signature)), "a token is in the log");
}

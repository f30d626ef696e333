//! The services that gRPC's own tools know: health and reflection.

use tokio_stream::StreamExt as _;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::stage::{Stage, channel};

#[tokio::test(flavor = "multi_thread")]
async fn health_is_for_anyone() {
    let stage = Stage::up().await;
    let mine = stage.launched("mine").await;
    for socket in [stage.socket(), stage.vm_socket(mine.id)] {
        let mut health = HealthClient::new(channel(&socket).await);
        for service in ["", "openshell.v1.OpenShell"] {
            let answer = health.check(HealthCheckRequest { service: service.into() }).await.expect("an answer");
            assert_eq!(answer.into_inner().status(), ServingStatus::Serving, "{service:?}");
        }
        let status = health.check(HealthCheckRequest { service: "nothing".into() }).await.expect_err("no such service");
        assert_eq!(status.code(), Code::NotFound);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_tells_a_user_what_is_served() {
    let stage = Stage::up().await;
    let mine = stage.launched("mine").await;
    let question = || {
        let message_request = Some(MessageRequest::ListServices(String::new()));
        tokio_stream::once(ServerReflectionRequest { host: String::new(), message_request })
    };
    let mut user = ServerReflectionClient::new(channel(&stage.socket()).await);
    let mut answers = user.server_reflection_info(question()).await.expect("a user may").into_inner();
    let answer = answers.next().await.expect("an answer").expect("services");
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else { panic!("{answer:?}") };
    let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    assert!(names.contains(&"openshell.v1.OpenShell".to_owned()), "{names:?}");
    let mut sandbox = ServerReflectionClient::new(channel(&stage.vm_socket(mine.id)).await);
    let status = sandbox.server_reflection_info(question()).await.expect_err("nobody");
    assert_eq!(status.code(), Code::Unauthenticated);
}

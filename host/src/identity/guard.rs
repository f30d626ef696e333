//! Who may call what: one table, a row for every RPC that is served.

use super::principal::Principal;

/// Who may call an RPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Everybody, without an identity.
    Anyone,
    /// Users only.
    User,
    /// Sandboxes only. For which sandbox is the RPC's own question.
    Sandbox,
    /// Users and sandboxes.
    Either,
}

/// Every RPC by its full gRPC path. An RPC without a row cannot be called by anybody.
pub const RULES: &[(&str, Rule)] = &[
    ("/openshell.v1.OpenShell/Health", Rule::Anyone),
    ("/grpc.health.v1.Health/Check", Rule::Anyone),
    ("/grpc.health.v1.Health/Watch", Rule::Anyone),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Rule::User),
    ("/openshell.v1.OpenShell/GetGatewayInfo", Rule::User),
    ("/openshell.v1.OpenShell/GetCurrentUser", Rule::User),
    ("/openshell.v1.OpenShell/CreateSandbox", Rule::User),
    ("/openshell.v1.OpenShell/GetSandbox", Rule::User),
    ("/openshell.v1.OpenShell/ListSandboxes", Rule::User),
    ("/openshell.v1.OpenShell/DeleteSandbox", Rule::User),
    ("/openshell.v1.OpenShell/StopSandbox", Rule::User),
    ("/openshell.v1.OpenShell/StartSandbox", Rule::User),
    ("/openshell.v1.OpenShell/WatchSandbox", Rule::User),
    ("/openshell.v1.OpenShell/GetSandboxLogs", Rule::User),
    ("/openshell.v1.OpenShell/ExecSandbox", Rule::User),
    ("/openshell.v1.OpenShell/ExecSandboxInteractive", Rule::User),
    ("/openshell.v1.OpenShell/ForwardTcp", Rule::User),
    ("/openshell.v1.OpenShell/CreateSshSession", Rule::User),
    ("/openshell.v1.OpenShell/RevokeSshSession", Rule::User),
    ("/openshell.v1.OpenShell/ConnectSupervisor", Rule::Sandbox),
    ("/openshell.v1.OpenShell/RelayStream", Rule::Sandbox),
    ("/openshell.v1.OpenShell/ReportMainProcessExit", Rule::Sandbox),
    ("/openshell.v1.OpenShell/PushSandboxLogs", Rule::Sandbox),
    ("/openshell.v1.OpenShell/RefreshSandboxToken", Rule::Sandbox),
    ("/openshell.v1.OpenShell/IssueSandboxToken", Rule::Sandbox),
    ("/openshell.v1.OpenShell/GetSandboxProviderEnvironment", Rule::Sandbox),
    ("/openshell.v1.OpenShell/GetSandboxConfig", Rule::Either),
    ("/openshell.v1.OpenShell/UpdateConfig", Rule::Either),
    ("/openshell.vm.v1.Vm/Sync", Rule::Sandbox),
    ("/openshell.vm.v1.Operator/RotateToken", Rule::User),
    ("/openshell.vm.v1.Operator/RevokeToken", Rule::User),
    ("/openshell.vm.v1.Operator/DebugRpc", Rule::User),
    ("/openshell.vm.v1.Operator/ListServices", Rule::User),
    ("/openshell.vm.v1.Operator/ReadConsole", Rule::User),
    ("/openshell.vm.v1.Operator/GetSshHostKey", Rule::User),
    ("/openshell.vm.v1.Operator/SetSecret", Rule::User),
    ("/openshell.vm.v1.Operator/ListSecrets", Rule::User),
    ("/openshell.vm.v1.Operator/RemoveSecret", Rule::User),
];

/// The rule of an RPC; nothing where there is no such RPC.
pub fn rule(path: &str) -> Option<Rule> {
    RULES.iter().find(|(known, _)| *known == path).map(|(_, rule)| *rule)
}

/// Why a caller may not call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// It has shown no identity, and the RPC needs one.
    #[error("this call needs an identity")]
    Unauthenticated,
    /// It is somebody, but nobody who may call this.
    #[error("this call is for users only")]
    UsersOnly,
    /// Likewise.
    #[error("this call is for sandboxes only")]
    SandboxesOnly,
}

/// Whether a rule lets a principal through.
pub fn permits(rule: Rule, principal: &Principal) -> Result<(), Denial> {
    match (rule, principal) {
        (Rule::Anyone, _)
        | (Rule::User | Rule::Either, Principal::User { .. })
        | (Rule::Sandbox | Rule::Either, Principal::Sandbox { .. }) => Ok(()),
        (_, Principal::Anonymous) => Err(Denial::Unauthenticated),
        (Rule::User, Principal::Sandbox { .. }) => Err(Denial::UsersOnly),
        (Rule::Sandbox, Principal::User { .. }) => Err(Denial::SandboxesOnly),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Arc};

    use prost::Message as _;
    use uuid::Uuid;

    use super::*;
    use crate::identity::claims::Claims;

    fn served() -> BTreeSet<String> {
        let sets =
            [proto::DESCRIPTORS, tonic_health::pb::FILE_DESCRIPTOR_SET, tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET];
        let decoded = sets.map(|set| prost_types::FileDescriptorSet::decode(set).unwrap());
        let mut paths = BTreeSet::new();
        for file in decoded.iter().flat_map(|set| &set.file) {
            for service in &file.service {
                for method in &service.method {
                    paths.insert(format!("/{}.{}/{}", file.package(), service.name(), method.name()));
                }
            }
        }
        paths
    }

    #[test]
    fn every_rpc_has_one_row_and_every_row_an_rpc() {
        let rows: BTreeSet<_> = RULES.iter().map(|(path, _)| (*path).to_owned()).collect();
        assert_eq!(rows.len(), RULES.len(), "a path is there twice");
        assert_eq!(rows, served());
    }

    #[test]
    fn only_health_is_for_anyone() {
        let open: Vec<_> = RULES.iter().filter(|(_, rule)| *rule == Rule::Anyone).map(|(path, _)| *path).collect();
        let health = ["/openshell.v1.OpenShell/Health", "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"];
        assert_eq!(open, health);
        assert_eq!(rule("/openshell.v1.OpenShell/Nothing"), None);
        assert_eq!(rule("/openshell.vm.v1.Vm/Sync"), Some(Rule::Sandbox));
    }

    #[test]
    fn rules_and_principals() {
        let claims = Claims {
            sub: String::new(),
            iss: String::new(),
            aud: String::new(),
            sandbox_id: Uuid::nil(),
            iat: 0,
            exp: 0,
            jti: Uuid::nil(),
            generation: 0,
        };
        let sandbox = Principal::Sandbox { id: Uuid::nil(), claims: Arc::new(claims) };
        let user = Principal::User { uid: 0 };
        use Denial::*;
        for (rule, expected) in [
            (Rule::Anyone, [Ok(()), Ok(()), Ok(())]),
            (Rule::User, [Ok(()), Err(UsersOnly), Err(Unauthenticated)]),
            (Rule::Sandbox, [Err(SandboxesOnly), Ok(()), Err(Unauthenticated)]),
            (Rule::Either, [Ok(()), Ok(()), Err(Unauthenticated)]),
        ] {
            let asked = [&user, &sandbox, &Principal::Anonymous].map(|principal| permits(rule, principal));
            assert_eq!(asked, expected, "{rule:?}");
        }
    }
}

//! The contracts between gateway, vmm and agent.
//!
//! Everything that two programs must agree on stands here and nowhere else: the RPC messages ([`openshell`]),
//! their frames that carry bytes ([`relay`]), their log lines ([`log`]), the documents that are handed over as JSON
//! ([`boot`], [`exec`], [`vmm`], [`debug`]), the services of a guest ([`service`]), the console's file ([`console`]) and
//! the last line in it ([`last_words`]), the
//! places inside a guest ([`layout`]), the names of annotations ([`annotation`]), the numbers ([`budget`]) and the
//! versions ([`version`]). Numbers that depend on each other are tied by assertions which fail the build.

#![forbid(unsafe_code)]

pub mod annotation;
pub mod boot;
pub mod budget;
mod codec;
pub mod console;
pub mod debug;
pub mod exec;
pub mod fault;

pub mod last_words;
pub mod layout;
pub mod log;
pub mod relay;
mod secretive;
pub mod service;
pub mod version;
pub mod vmm;

/// Generated messages, clients and servers.
pub mod openshell {
    /// `openshell.v1`: the public API and the session of an agent.
    #[allow(missing_docs, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("openshell.v1");
    }
    /// `openshell.datamodel.v1`: what every stored object has.
    pub mod datamodel {
        /// See the parent.
        #[allow(missing_docs, clippy::all)]
        pub mod v1 {
            tonic::include_proto!("openshell.datamodel.v1");
        }
    }
    /// `openshell.sandbox.v1`: what a sandbox is configured with.
    pub mod sandbox {
        /// See the parent.
        #[allow(missing_docs, clippy::all)]
        pub mod v1 {
            tonic::include_proto!("openshell.sandbox.v1");
        }
    }
    /// `openshell.vm.v1`: `Sync`, and what users ask for about identity.
    pub mod vm {
        /// See the parent.
        #[allow(missing_docs, clippy::all)]
        pub mod v1 {
            tonic::include_proto!("openshell.vm.v1");
        }
    }
}

/// The serialized `FileDescriptorSet` of all served services, for tests and for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

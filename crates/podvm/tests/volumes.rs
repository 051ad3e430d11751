//! Cloud volumes through a running forwarder: mounted for a container, unmounted when the sandbox or the VM ends.

mod common;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::Result;
use async_trait::async_trait;
use bytes::Bytes;
use common::{LIMIT, Network, Recorder};
use peerpod_proto::Client;
use peerpod_proto::messages::agent::{self, CreateContainerRequest, method};
use peerpod_proto::messages::oci::{Linux, Mount, Spec};
use podvm::forwarder::{Forwarder, Options};
use podvm::paths::Paths;
use podvm::volumes::{ANNOTATION, MountLayer, Patience, Signature, Volume};
use prost::Message;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// Mounts that are only written down.
#[derive(Default)]
struct Ledger {
    mounted: Mutex<Vec<PathBuf>>,
}

#[async_trait]
impl MountLayer for Ledger {
    async fn find_device(&self, volume: &Volume) -> Result<Option<PathBuf>> {
        Ok(Some(format!("/dev/disk{}", volume.lun).into()))
    }

    async fn mounted_from(&self, _: &Path) -> Result<Option<PathBuf>> {
        Ok(None)
    }

    async fn mount(&self, _: &Path, folder: &Path, _: &str) -> Result<()> {
        self.mounted.lock().unwrap().push(folder.to_owned());
        Ok(())
    }

    async fn unmount(&self, folder: &Path) -> Result<()> {
        self.mounted.lock().unwrap().retain(|mounted| mounted != folder);
        Ok(())
    }

    async fn signature(&self, _: &Path) -> Result<Signature> {
        Ok(Signature::Empty)
    }

    async fn make_file_system(&self, _: &Path, _: &str) -> Result<()> {
        anyhow::bail!("nothing is to be formatted")
    }

    async fn head(&self, _: &Path) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }

    async fn mapper(&self, _: &str) -> Option<PathBuf> {
        None
    }

    async fn secure_mount(&self, _: &Path, _: &Path, _: &Volume, _: bool) -> Result<()> {
        anyhow::bail!("nothing is encrypted")
    }

    async fn close_mapper(&self, _: &str) -> Result<()> {
        Ok(())
    }

    async fn set_group(&self, _: &Path, _: u32) -> Result<()> {
        Ok(())
    }
}

fn create_container(id: &str) -> Vec<u8> {
    let annotation = r#"{"vol-0":{"mount_point":"/data","lun":"0"}}"#;
    let oci = Spec {
        linux: Some(Linux::default()),
        annotations: HashMap::from([(ANNOTATION.to_owned(), annotation.to_owned())]),
        mounts: vec![Mount { destination: "/data".to_owned(), ..Mount::default() }],
        ..Spec::default()
    };
    CreateContainerRequest { container_id: id.to_owned(), oci: Some(oci), ..Default::default() }
        .encode_to_vec()
}

async fn ask(client: &Client, name: &str, payload: Vec<u8>) -> Bytes {
    client.request(agent::SERVICE, name, payload.into(), Some(LIMIT), Vec::new()).await.unwrap()
}

#[tokio::test]
async fn volumes_are_unmounted_with_the_sandbox_and_when_the_forwarder_is_told_to_stop() {
    let network = Network::new();
    let dir = tempfile::tempdir().unwrap();
    let apf = serde_json::json!({ "pod-network": common::pod_network() });
    std::fs::write(dir.path().join("apf.json"), apf.to_string()).unwrap();
    let socket = dir.path().join("agent.sock");
    let _agent = Arc::new(Recorder::default()).serve(&socket);
    let ledger = Arc::new(Ledger::default());
    let mut options = Options::default();
    options.config = dir.path().join("apf.json");
    options.listen = "127.0.0.1:0".to_owned();
    options.agent_socket = socket;
    options.pod_namespace = network.podns.path();
    options.disable_tls = true;
    let root = Paths::new(dir.path());
    let folder = root.at("/run/cloud-volumes/vol-0");
    let layer = ledger.clone();
    peerpod_net::netns::run_in(&network.guest.path(), move || async move {
        let stop = CancellationToken::new();
        let forwarder = Forwarder::start(&options, root, layer, Patience::default(), &stop).await.unwrap();
        let address = forwarder.local_addr().unwrap();
        let running = tokio::spawn(forwarder.run(stop.clone()));
        let client = Client::connect(TcpStream::connect(address).await.unwrap());
        for id in ["a", "b"] {
            let reply = ask(&client, method::CREATE_CONTAINER, create_container(id)).await;
            let mounts = CreateContainerRequest::decode(reply).unwrap().oci.unwrap().mounts;
            assert_eq!(Path::new(&mounts[0].source), folder);
            assert_eq!(*ledger.mounted.lock().unwrap(), std::slice::from_ref(&folder));
        }
        ask(&client, method::DESTROY_SANDBOX, Vec::new()).await;
        assert!(ledger.mounted.lock().unwrap().is_empty());
        // Some shims never send DestroySandbox: then the end of the forwarder is the end of the mounts.
        ask(&client, method::CREATE_CONTAINER, create_container("c")).await;
        assert_eq!(ledger.mounted.lock().unwrap().len(), 1);
        stop.cancel();
        running.await.unwrap();
        assert!(ledger.mounted.lock().unwrap().is_empty());
    })
    .await
    .unwrap();
    assert!(!network.pod_is_up());
}

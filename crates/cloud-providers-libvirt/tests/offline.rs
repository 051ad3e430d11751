//! The provider on libvirt's test driver: no daemon, no root, no machine.
//!
//! The driver keeps domains and volumes in the memory of this process and gives every interface an address at once. It has
//! no content of volumes and no consoles, so the seed stays empty there.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use cloud_providers::{
    Cloud, Confidential, CreateRequest, ErrorKind, InstanceId, MapEnv, OpContext, Ownership, Provider, Scope,
    Token, Unit,
};
use cloud_providers_libvirt::{
    LibvirtCloud,
    testing::{Faults, How},
};
use virt::{connect::Connect, domain::Domain, storage_pool::StoragePool, storage_vol::StorageVol};

const URI: &str = "test:///default";
const POOL: &str = "default-pool";

/// A provider, and a connection that keeps the driver's memory while the provider's come and go.
struct Driver {
    connection: Connect,
    scope: Scope,
    base: String,
    faults: Faults,
}

impl Driver {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let number = NEXT.fetch_add(1, Ordering::SeqCst);
        // Registers libvirt's events before the first connection.
        drop(LibvirtCloud::new());
        let connection = Connect::open(Some(URI)).unwrap();
        let base = format!("base-{number}.qcow2");
        let xml = format!(
            "<volume><name>{base}</name><capacity unit='MiB'>64</capacity><target><format type='qcow2'/></target></volume>"
        );
        let pool = StoragePool::lookup_by_name(&connection, POOL).unwrap();
        StorageVol::create_xml(&pool, &xml, 0).unwrap();
        Self {
            connection,
            scope: Scope::Cluster(format!("offline-{number}")),
            base,
            faults: Faults::default(),
        }
    }

    async fn provider(&self) -> Arc<dyn Provider> {
        self.provider_with(&[]).await.unwrap()
    }

    async fn provider_with(&self, more: &[(&str, &str)]) -> cloud_providers::Result<Arc<dyn Provider>> {
        let mut cloud = LibvirtCloud::new().with_faults(&self.faults);
        let variables = [("LIBVIRT_URI", URI), ("LIBVIRT_POOL", POOL), ("LIBVIRT_VOL_NAME", &self.base)];
        cloud.load_env(&MapEnv::new(variables.into_iter().chain(more.iter().copied())))?;
        cloud.new_provider().await
    }

    fn request(&self) -> CreateRequest {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let unit = format!("{:08x}", NEXT.fetch_add(1, Ordering::SeqCst));
        let token = Token::new(self.scope.clone(), &unit, 1);
        CreateRequest::new(token, Unit { id: unit, name_hint: "off".into() }, "node-1")
            .with_user_data("#cloud-config\n")
    }

    fn own(&self) -> Ownership {
        Ownership::Tagged(self.scope.clone())
    }

    fn has_domain(&self, name: &str) -> bool {
        Domain::lookup_by_name(&self.connection, name).is_ok()
    }

    fn volumes_of(&self, name: &str) -> Vec<String> {
        let pool = StoragePool::lookup_by_name(&self.connection, POOL).unwrap();
        pool.list_volumes().unwrap().into_iter().filter(|v| v.starts_with(name)).collect()
    }
}

#[tokio::test]
async fn an_instance_comes_is_listed_and_goes() {
    let driver = Driver::new();
    let (provider, ctx) = (driver.provider().await, OpContext::new());
    let report = provider.verify_config(&ctx).await.unwrap();
    assert!(report.is_ok() && report.findings.len() >= 4, "{report}");
    let request = driver.request();
    let instance = provider.create_instance(&ctx, &request).await.unwrap();
    assert!(!instance.addresses.is_empty());
    assert_eq!(driver.volumes_of(&instance.name).len(), 2);
    assert_eq!(provider.create_instance(&ctx, &request).await.unwrap(), instance);
    let list = provider.list_owned(&ctx, &driver.scope).await.unwrap();
    assert_eq!(list.entries.len(), 1);
    assert_eq!(list.entries[0].token.as_ref(), Some(&request.token));

    let other = Ownership::Tagged(Scope::Cluster("other".into()));
    let refused = provider.delete_instance(&ctx, &instance.id, &other).await.unwrap_err();
    assert_eq!(*refused.kind(), ErrorKind::Permission);
    provider.delete_instance(&ctx, &instance.id, &driver.own()).await.unwrap();
    provider.delete_instance(&ctx, &instance.id, &driver.own()).await.unwrap();
    assert!(!driver.has_domain(&instance.name) && driver.volumes_of(&instance.name).is_empty());
    provider.teardown().await.unwrap();
    provider.teardown().await.unwrap();
    let after = provider.list_owned(&ctx, &driver.scope).await.unwrap_err();
    assert!(after.to_string().contains("torn down"), "{after}");
}

/// A create that finds its own definition, not started, finishes the work of whoever left it.
#[tokio::test]
async fn a_half_made_instance_is_finished() {
    let finish = async |broken: &str| {
        // With faults of its own, which must not strike the other one's calls.
        let driver = Driver::new();
        let (provider, ctx) = (driver.provider().await, OpContext::new());
        let request = driver.request();
        let struck = driver.faults.strike(broken, 1, How::HangBefore);
        tokio::select! {
            result = provider.create_instance(&ctx, &request) => panic!("{broken} was not called: {result:?}"),
            () = struck.cancelled() => {}
        }
        let list = provider.list_owned(&ctx, &driver.scope).await.unwrap();
        let entry = list.entries.iter().find(|e| e.token.as_ref() == Some(&request.token)).unwrap();
        assert!(entry.instance.is_none() && entry.resources.len() == 3, "{entry:?}");
        let instance = driver.provider().await.create_instance(&ctx, &request).await.unwrap();
        assert_eq!(instance.id.as_str(), entry.resources[0].id, "{broken}");
        assert_eq!(driver.volumes_of(&instance.name).len(), 2, "{broken}");
        provider.release(&ctx, &request.token).await.unwrap();
        assert!(!driver.has_domain(&instance.name) && driver.volumes_of(&instance.name).is_empty());
    };
    // Both wait until nobody can be at work on the definitions any more.
    tokio::join!(finish("virStorageVolCreateXML"), finish("virDomainCreate"));
}

#[tokio::test]
async fn a_cancelled_call_is_left_at_once() {
    let driver = Driver::new();
    let provider = driver.provider().await;
    for how in [How::HangBefore, How::HangAfter] {
        let cancel = cloud_providers::CancellationToken::new();
        let ctx = OpContext::new().with_cancel(cancel.clone());
        let struck = driver.faults.strike("virConnectListAllDomains", 1, how);
        let list = provider.list_owned(&ctx, &driver.scope);
        let (result, left) = tokio::join!(list, async {
            struck.cancelled().await;
            cancel.cancel();
            Instant::now()
        });
        assert_eq!(*result.unwrap_err().kind(), ErrorKind::Cancelled);
        assert!(left.elapsed() < Duration::from_millis(100), "{how:?}: {:?}", left.elapsed());
    }
}

#[tokio::test]
async fn what_the_host_cannot_do_is_refused_and_everything_wrong_is_named() {
    let driver = Driver::new();
    let (provider, ctx) = (driver.provider().await, OpContext::new());
    let mut request = driver.request();
    request.spec.confidential = Confidential::Yes;
    let error = provider.create_instance(&ctx, &request).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Unsupported);

    let wrong = [("LIBVIRT_POOL", "nowhere"), ("LIBVIRT_NET", "nothing"), ("DISABLECVM", "false")];
    let provider = driver.provider_with(&wrong).await.unwrap();
    let text = provider.verify_config(&ctx).await.unwrap().into_result().unwrap_err().to_string();
    for part in ["nowhere", "nothing", "DISABLECVM"] {
        assert!(text.contains(part), "{part} is not named: {text}");
    }
    let provider = driver.provider_with(&[("LIBVIRT_VOL_NAME", "no-image")]).await.unwrap();
    let text = provider.verify_config(&ctx).await.unwrap().into_result().unwrap_err().to_string();
    assert!(text.contains("no-image") && text.contains("LIBVIRT_VOL_NAME"), "{text}");
}

#[tokio::test]
async fn a_name_with_characters_that_libvirt_cannot_carry_is_refused() {
    let driver = Driver::new();
    let (provider, ctx) = (driver.provider().await, OpContext::new());
    for image in ["a\0b", "a\nb", ""] {
        let mut request = driver.request();
        request.spec.image = Some(image.into());
        let result = provider.create_instance(&ctx, &request).await;
        assert_eq!(*result.unwrap_err().kind(), ErrorKind::Config, "{image:?}");
    }
    // Ids that were never ours are nobody's.
    for id in ["", "\0", "../x", "00000000-0000-4000-8000-00000000000a"] {
        provider.delete_instance(&ctx, &InstanceId::new(id), &driver.own()).await.unwrap();
    }
}

/// libvirt's library would wait for ever; here nothing listens at the other end.
#[tokio::test]
async fn a_server_that_is_not_there_is_named_with_its_option() {
    let mut cloud = LibvirtCloud::new();
    let uri = "qemu+unix:///system?socket=/nonexistent/libvirt-sock";
    cloud.load_env(&MapEnv::new([("LIBVIRT_URI", uri)])).unwrap();
    // Not an error yet: libvirt may start later than this program.
    let provider = cloud.new_provider().await.unwrap();
    let error = provider.verify_config(&OpContext::new()).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Transient);
    let text = error.to_string();
    assert!(text.contains(uri) && text.contains("LIBVIRT_URI") && text.contains("libvirt-sock"), "{text}");
}

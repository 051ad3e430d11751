//! What a provider cannot do, and what it promises.

use cloud_providers::{
    Architecture, Capabilities, Confidential, ConfidentialType, CreateRequest, ErrorKind, NetworkRequest,
    OpContext, VolumeRequest,
};

use crate::{
    Feature, Obstacle, Offer,
    context::{Context, ensure, refused},
};

const TYPES: [ConfidentialType; 5] = [
    ConfidentialType::SevSnp,
    ConfidentialType::Sev,
    ConfidentialType::Tdx,
    ConfidentialType::SecureExecution,
    ConfidentialType::Cca,
];

const ARCHITECTURES: [Architecture; 4] =
    [Architecture::X86_64, Architecture::Aarch64, Architecture::S390x, Architecture::Ppc64le];

/// Demands that a request is refused with `kind` before anything is made or called.
async fn refused_at_once(
    c: &Context,
    request: &CreateRequest,
    kind: &ErrorKind,
    what: &str,
) -> Offer<String> {
    let before = c.look().await?;
    let provider = c.provider().await?;
    let calls = c.harness.calls().await.ok();
    let ctx = OpContext::new();
    c.keep(request);
    let result = c.within(c.bounds.operation, "the create", provider.create_instance(&ctx, request)).await?;
    let error = refused(result, kind, what)?;
    let later = c.harness.calls().await.ok();
    ensure!(calls == later, "{what} was refused only after remote calls: {calls:?}, then {later:?}");
    c.unchanged(&before, format!("after {what} was refused")).await?;
    Ok(error.report())
}

pub(crate) async fn confidential(c: &Context) {
    c.check("types-that-are-not-there", undeclared_types(c)).await;
    c.check("any-type", any_type(c)).await;
    c.check("by-configuration", by_configuration(c)).await;
}

async fn undeclared_types(c: &Context) -> Offer<()> {
    let can = c.capabilities().await?;
    for kind in TYPES.iter().filter(|t| !can.confidential.contains(t)) {
        let mut request = c.request();
        request.spec.confidential = Confidential::Type(*kind);
        refused_at_once(c, &request, &ErrorKind::Unsupported, &format!("a machine of type {kind}")).await?;
    }
    Ok(())
}

async fn any_type(c: &Context) -> Offer<()> {
    let can = c.capabilities().await?;
    if !can.confidential.is_empty() {
        return Err(Obstacle::unsupported("a provider without confidential machines"));
    }
    let mut request = c.request();
    request.spec.confidential = Confidential::Yes;
    refused_at_once(c, &request, &ErrorKind::Unsupported, "a confidential machine").await?;
    Ok(())
}

async fn by_configuration(c: &Context) -> Offer<()> {
    let more = c.harness.confidential_variables()?;
    let before = c.look().await?;
    let request = c.request();
    let mut cloud = c.harness.cloud();
    cloud.load_env(&c.environment(&more))?;
    let provider = match cloud.new_provider().await {
        // Refused as early as can be.
        Err(error) => {
            ensure!(matches!(error.kind(), ErrorKind::Config | ErrorKind::Unsupported), "{error:?}");
            return Ok(());
        }
        Ok(provider) => provider,
    };
    let ctx = OpContext::new();
    let result = c.within(c.bounds.operation, "the create", provider.create_instance(&ctx, &request)).await?;
    refused(result, &ErrorKind::Unsupported, "a machine that is confidential by configuration")?;
    c.unchanged(&before, "after a machine that is confidential by configuration").await
}

pub(crate) async fn unsupported(c: &Context) {
    c.check("features-that-are-not-there", undeclared_features(c)).await;
    c.check("architectures-that-are-not-there", undeclared_architectures(c)).await;
    c.check("several-at-once", several_at_once(c)).await;
    c.check("names-that-nothing-has", unknown_names(c)).await;
}

fn declares(can: &Capabilities, feature: Feature) -> bool {
    match feature {
        Feature::Gpus => can.gpus,
        Feature::Volumes => can.volumes,
        Feature::RootDisk => can.root_disk_size,
        Feature::Image => can.images,
        Feature::TwoNetworks => can.multi_nic,
        Feature::PlainMachine => can.plain_machines,
        Feature::Ports => can.ports,
        Feature::Sizes => can.sizes,
    }
}

/// Asks for a feature with names that nothing has, where it takes names.
fn ask_for(feature: Feature, mut request: CreateRequest) -> Offer<CreateRequest> {
    match feature {
        Feature::Volumes => request.spec.volumes.push(VolumeRequest::new("no-such-volume")),
        Feature::Image => request.spec.image = Some("no-such-image".into()),
        _ => return feature.add_to(request),
    }
    Ok(request)
}

/// Features that a provider refuses when it does not have them. Sizes are a wish that it may not enforce.
fn refusable(can: &Capabilities) -> impl Iterator<Item = Feature> + '_ {
    Feature::ALL.into_iter().filter(|f| *f != Feature::Sizes && !declares(can, *f))
}

async fn undeclared_features(c: &Context) -> Offer<()> {
    let can = c.capabilities().await?;
    for feature in refusable(&can) {
        let request = ask_for(feature, c.request())?;
        refused_at_once(c, &request, &ErrorKind::Unsupported, &format!("a request for {}", feature.word()))
            .await?;
    }
    Ok(())
}

async fn undeclared_architectures(c: &Context) -> Offer<()> {
    let can = c.capabilities().await?;
    if can.architectures.is_empty() {
        return Err(Obstacle::unsupported("known architectures"));
    }
    for architecture in ARCHITECTURES.iter().filter(|a| !can.architectures.contains(a)) {
        let mut request = c.request();
        request.spec.architecture = Some(*architecture);
        refused_at_once(c, &request, &ErrorKind::Unsupported, &format!("architecture {architecture}"))
            .await?;
    }
    Ok(())
}

async fn several_at_once(c: &Context) -> Offer<()> {
    let can = c.capabilities().await?;
    let mut request = c.request();
    let mut words = Vec::new();
    if !can.gpus {
        request.spec.gpus = 3;
        words.push("3 GPUs");
    }
    if !can.multi_nic {
        request.networks = vec![NetworkRequest::default(), NetworkRequest::default()];
        words.push("2 network interfaces");
    }
    if can.confidential.is_empty() {
        request.spec.confidential = Confidential::Yes;
        words.push("confidential machines");
    }
    if words.len() < 2 {
        return Err(Obstacle::unsupported("two features that are not there"));
    }
    let text =
        refused_at_once(c, &request, &ErrorKind::Unsupported, "a request for several features").await?;
    ensure!(words.iter().all(|w| text.contains(w)), "not all of {words:?} are in {text:?}");
    Ok(())
}

async fn unknown_names(c: &Context) -> Offer<()> {
    let can = c.capabilities().await?;
    let mut cases: Vec<(&str, CreateRequest)> = Vec::new();
    let mut add = |what, change: &dyn Fn(&mut CreateRequest)| {
        let mut request = c.request();
        change(&mut request);
        c.keep(&request);
        cases.push((what, request));
    };
    add("an instance type", &|r| r.spec.instance_type = Some("no-such-type".into()));
    add("a network", &|r| {
        let mut network = NetworkRequest::default();
        network.network = Some("no-such-network".into());
        r.networks = vec![network];
    });
    if can.images {
        add("an image", &|r| r.spec.image = Some("no-such-image".into()));
    }
    if can.volumes {
        add("a volume", &|r| r.spec.volumes.push(VolumeRequest::new("no-such-volume")));
    }
    for (what, request) in cases {
        let before = c.look().await?;
        let result = c.try_create(&OpContext::new(), &request).await?;
        ensure!(result.is_err(), "{what} that does not exist was passed over: {result:?}");
        c.unchanged(&before, format!("after {what} that does not exist")).await?;
    }
    let address: std::net::IpAddr = std::net::Ipv4Addr::new(203, 0, 113, 77).into();
    let mut request = c.request();
    let mut network = NetworkRequest::default();
    network.address = Some(address);
    request.networks = vec![network];
    c.keep(&request);
    let result = c.try_create(&OpContext::new(), &request).await?;
    let passed_over = result.as_ref().is_ok_and(|i| !i.addresses.contains(&address));
    ensure!(!passed_over, "the address wanted was passed over: {result:?}");
    Ok(())
}

pub(crate) async fn limits(c: &Context) {
    c.check("user-data", user_data(c)).await;
    c.check("name", name(c)).await;
}

async fn user_data(c: &Context) -> Offer<()> {
    let can = c.capabilities().await?;
    let limit = can.user_data_limit.ok_or_else(|| Obstacle::unsupported("a limit of user data"))?;
    // A comment in cloud-config, whatever reads it.
    let text = |bytes: usize| {
        let mut text = b"#cloud-config\n#".to_vec();
        text.resize(bytes, b'x');
        text
    };
    for bytes in [limit - 1, limit] {
        let before = c.look().await?;
        let request = c.request().with_user_data(text(bytes));
        c.keep(&request);
        let instance = c.create(&request).await?;
        match c.harness.user_data(&instance.id).await {
            Ok(got) => ensure!(got == text(bytes), "{} of {bytes} bytes arrived", got.len()),
            Err(Obstacle::Unsupported(_)) => {}
            Err(failed) => return Err(failed),
        }
        c.delete(&instance).await?;
        c.unchanged(&before, format!("after an instance with {bytes} bytes of user data")).await?;
    }
    let request = c.request().with_user_data(text(limit + 1));
    let told = refused_at_once(c, &request, &ErrorKind::Config, "user data of one byte too many").await?;
    ensure!(told.contains(&limit.to_string()), "the limit {limit} is not in {told:?}");
    Ok(())
}

async fn name(c: &Context) -> Offer<()> {
    let can = c.capabilities().await?;
    let limit = can.name_limit.ok_or_else(|| Obstacle::unsupported("a limit of names"))?;
    let mut request = c.request();
    request.unit.name_hint = format!("Ünit_{}", "x".repeat(300));
    c.keep(&request);
    let instance = c.create(&request).await?;
    let length = instance.name.chars().count();
    ensure!(length <= limit, "the name has {length} characters, the limit is {limit}: {}", instance.name);
    c.delete(&instance).await
}

pub(crate) async fn capabilities(c: &Context) {
    c.check("known-without-a-remote-call", known_at_once(c)).await;
    c.check("optional-calls", optional_calls(c)).await;
    // A feature that is denied is refused, see `create/unsupported-is-refused`.
    let can = c.capabilities().await.unwrap_or_default();
    for feature in Feature::ALL.into_iter().filter(|f| declares(&can, *f)) {
        c.check(feature.word(), works(c, feature)).await;
    }
    c.check("architectures", architectures(c)).await;
}

async fn known_at_once(c: &Context) -> Offer<()> {
    let (one, two) = (c.provider().await?, c.provider().await?);
    let calls = c.harness.calls().await.ok();
    ensure!(one.capabilities() == two.capabilities(), "two values say different things");
    let later = c.harness.calls().await.ok();
    ensure!(calls == later, "capabilities made remote calls: {calls:?}, then {later:?}");
    Ok(())
}

async fn optional_calls(c: &Context) -> Offer<()> {
    let (provider, ctx) = (c.provider().await?, OpContext::new());
    let can = provider.capabilities();
    let request = c.request();
    let scope = c.scope();
    let verify = c.within(c.bounds.operation, "verify_config", provider.verify_config(&ctx)).await?;
    let list = c.within(c.bounds.operation, "list_owned", provider.list_owned(&ctx, &scope)).await?;
    let release = c.within(c.bounds.operation, "release", provider.release(&ctx, &request.token)).await?;
    for (what, promised, error) in [
        ("verify_config", can.verify_config, verify.err()),
        ("list_owned", can.list_owned, list.err()),
        ("release", can.release, release.err()),
    ] {
        match (promised, error) {
            (true, None) => {}
            (true, Some(error)) => {
                return Err(Obstacle::failed(format!("{what} is promised and gives {error:?}")));
            }
            (false, error) => {
                let told = error.as_ref().map(|e| e.kind().clone());
                ensure!(told == Some(ErrorKind::Unsupported), "{what} is denied and gives {error:?}");
            }
        }
    }
    Ok(())
}

/// A promised feature works and leaves nothing.
async fn works(c: &Context, feature: Feature) -> Offer<()> {
    let request = c.harness.with_feature(feature, c.request()).await?;
    c.keep(&request);
    let before = c.look().await?;
    let instance = c.create(&request).await?;
    match c.harness.has_feature(feature, &instance.id).await {
        Ok(true) => {}
        Ok(false) => {
            return Err(Obstacle::failed(format!("the instance {} has no {}", instance.id, feature.word())));
        }
        // That the request was met is all that can be seen.
        Err(Obstacle::Unsupported(_)) => {}
        Err(failed) => return Err(failed),
    }
    c.delete(&instance).await?;
    c.unchanged(&before, format!("after an instance with {}", feature.word())).await
}

async fn architectures(c: &Context) -> Offer<()> {
    let can = c.capabilities().await?;
    let Some(first) = can.architectures.first() else {
        return Err(Obstacle::unsupported("known architectures"));
    };
    let mut request = c.request();
    request.spec.architecture = Some(*first);
    c.keep(&request);
    let instance = c.create(&request).await?;
    c.delete(&instance).await
}

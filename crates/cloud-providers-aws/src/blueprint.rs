//! Works out what a request is made of: interfaces, type, places, root volume.

use std::{net::IpAddr, sync::Arc};

use cloud_providers::{
    Confidential, ConfidentialType, CreateRequest, Error, ErrorKind, InstanceSpec, OpContext, Result,
    UserData,
    choice::Catalogue,
    placement::{Offering, Place, Plan, Purchase, TypeOffer},
};

use crate::{
    client::{Image, LaunchTemplate, LaunchTemplateRef, NewInterface, RootVolume, RunInstances, TypeInfo},
    config::{Config, Cvm},
    known::{Known, architecture_of, for_choice},
    owned::Wanted,
    remote::Calls,
};

/// Stands for the type of a launch template that does not name one, or cannot be read.
const TEMPLATE_TYPE: &str = "launch-template";

/// The interfaces of an instance, known without asking EC2 about anything but the launch template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) nics: Vec<Nic>,
    /// Only the first interface is made by the launch, the others when the instance runs.
    ///
    /// EC2 gives a public address of Amazon's pool to a single interface only.
    pub(crate) others_later: bool,
    /// The launch template says what the first interface is.
    pub(crate) of_template: bool,
    pub(crate) groups: Vec<String>,
}

/// One interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Nic {
    /// Subnet by the request's own wish.
    pub(crate) subnet: Option<String>,
    pub(crate) address: Option<IpAddr>,
    pub(crate) public: bool,
}

impl Shape {
    pub(crate) fn of(request: &CreateRequest, config: &Config, template: Option<&LaunchTemplate>) -> Self {
        let mut nics: Vec<Nic> = request
            .networks
            .iter()
            .map(|n| Nic {
                subnet: n.network.clone(),
                address: n.address,
                public: n.public || config.public_ip,
            })
            .collect();
        if nics.is_empty() {
            nics.push(Nic { public: config.public_ip, ..Nic::default() });
        }
        let placed = nics[0].subnet.is_some() || nics[0].address.is_some();
        let of_template = template
            .is_some_and(|t| t.interfaces > 0 || !t.subnets.is_empty() || config.subnets.is_empty())
            && !placed;
        let groups = match template {
            Some(template) if !template.groups.is_empty() => template.groups.clone(),
            _ => config.groups.clone(),
        };
        Self { others_later: nics.len() > 1 && (nics[0].public || of_template), nics, of_template, groups }
    }

    /// Returns whether something is made after the launch, so that the instance must run first.
    pub(crate) fn has_more_parts(&self) -> bool {
        self.others_later || self.nics.iter().skip(1).any(|nic| nic.public)
    }

    /// Returns the interfaces of the launch.
    fn interfaces(&self, subnet: Option<&str>) -> Vec<NewInterface> {
        if self.of_template {
            return Vec::new();
        }
        let count = if self.others_later { 1 } else { self.nics.len() };
        let interface = |(index, nic): (u32, &Nic)| NewInterface {
            device_index: index,
            subnet: nic.subnet.clone().or_else(|| subnet.map(str::to_owned)),
            groups: self.groups.clone(),
            private_address: nic.address,
            // The subnet's own default is not asked: without the wish for one a machine has no public address.
            public: (index == 0 && count == 1).then_some(nic.public),
            delete_on_termination: true,
        };
        (0..).zip(&self.nics).take(count).map(interface).collect()
    }
}

/// What an instance is launched from, everything but the place.
#[derive(Debug)]
pub(crate) struct Blueprint {
    pub(crate) shape: Shape,
    pub(crate) plan: Plan,
    template: Option<Arc<LaunchTemplate>>,
    template_ref: Option<LaunchTemplateRef>,
    image: Option<String>,
    root: Option<RootVolume>,
    key_name: Option<String>,
    /// Sets the processor's option even where a launch template might.
    sev_snp: bool,
    user_data: UserData,
    metadata: crate::client::MetadataOptions,
}

impl Blueprint {
    /// Asks EC2 for what is not known yet and works out the rest.
    pub(crate) async fn new(
        ctx: &OpContext,
        calls: &Calls,
        known: &Known,
        config: &Config,
        request: &CreateRequest,
        user_data: UserData,
    ) -> Result<Self> {
        let template = known.template(ctx, calls, config).await?;
        let shape = Shape::of(request, config, template.as_deref());
        // What the request names replaces what the template says; what is configured only fills its gaps.
        let of_template = template.as_ref().and_then(|t| t.image.clone());
        let image_id = request.spec.image.clone().or(of_template).or_else(|| config.image.clone());
        let image = match &image_id {
            // A reference to a parameter, which EC2 resolves at the launch.
            Some(id) if id.starts_with("resolve:") => None,
            Some(id) => Some(known.image(ctx, calls, id).await.map_err(|error| image_error(error, request))?),
            None => None,
        };
        let confidential = is_confidential(request, config, template.as_deref());
        let types =
            types(ctx, calls, known, config, request, template.as_deref(), image.as_deref(), confidential);
        let types = Box::pin(types).await?;
        let places = places(ctx, calls, known, config, &shape).await?;
        let types = with_zones(ctx, calls, known, types, &places).await?;
        let plan = Plan::new(&types, &places, config.purchase, confidential)?;
        let root = root_volume(request, config, image.as_deref())?;
        let key = template.as_ref().and_then(|t| t.key_name.clone());
        let template_ref = config.template.as_ref().map(|t| LaunchTemplateRef::new(&t.name, &t.version));
        Ok(Self {
            shape,
            plan,
            // A template that says it itself needs no repetition.
            image: image_id.filter(|_| {
                request.spec.image.is_some() || template.as_ref().is_none_or(|t| t.image.is_none())
            }),
            root,
            key_name: config.key_name.clone().filter(|_| key.is_none()),
            sev_snp: confidential && template.as_ref().is_none_or(|t| t.sev_snp != Some(true)),
            template,
            template_ref,
            user_data,
            metadata: config.metadata,
        })
    }

    /// Returns the launch at one place. The same offering and generation give the same launch.
    pub(crate) fn launch(&self, wanted: &Wanted, offering: &Offering, generation: u32) -> RunInstances {
        // Without the zone, which one process may know and another one not.
        let subnet = offering.subnet.as_deref().unwrap_or_default();
        let placement = format!(
            "{} {} {} {subnet}\ngeneration {generation}",
            offering.instance_type, offering.purchase, offering.confidential
        );
        let of_template = self.template.as_ref().and_then(|t| t.instance_type.as_deref());
        let named = offering.instance_type != TEMPLATE_TYPE && of_template != Some(&offering.instance_type);
        RunInstances {
            client_token: wanted.token.client_token(&placement),
            launch_template: self.template_ref.clone(),
            image: self.image.clone(),
            instance_type: named.then(|| offering.instance_type.clone()),
            key_name: self.key_name.clone(),
            interfaces: self.shape.interfaces(offering.subnet.as_deref()),
            root_volume: self.root.clone(),
            sev_snp: self.sev_snp,
            spot: offering.purchase == Purchase::Spot,
            metadata: Some(self.metadata),
            terminate_on_shutdown: true,
            user_data: self.user_data.clone(),
            tags: wanted.instance_tags(self.shape.has_more_parts()),
        }
    }
}

/// Whether the machine is made confidential. What a launch template says counts only where nobody said anything.
fn is_confidential(request: &CreateRequest, config: &Config, template: Option<&LaunchTemplate>) -> bool {
    match (&request.spec.confidential, config.cvm, template) {
        (Confidential::No, ..) => false,
        (Confidential::Default, Cvm::No, _) => false,
        (Confidential::Default, Cvm::Default, Some(template)) => template.sev_snp.unwrap_or(false),
        _ => true,
    }
}

/// Returns the types to try, the chosen one first.
#[expect(clippy::too_many_arguments, reason = "everything that a type depends on")]
async fn types(
    ctx: &OpContext,
    calls: &Calls,
    known: &Known,
    config: &Config,
    request: &CreateRequest,
    template: Option<&LaunchTemplate>,
    image: Option<&Image>,
    confidential: bool,
) -> Result<Vec<TypeOffer>> {
    let mut spec = request.spec.clone();
    if confidential {
        spec.confidential = Confidential::Type(ConfidentialType::SevSnp);
    }
    let of_image = image.and_then(|i| i.architecture.as_deref()).and_then(architecture_of);
    match (spec.architecture, of_image) {
        (Some(wanted), Some(has)) if wanted != has => {
            return Err(Error::config("the image is of another architecture than the request")
                .with("requested", wanted)
                .with("image", image.map(|i| i.id.as_str()).unwrap_or_default())
                .with("it is", has));
        }
        (None, has) => spec.architecture = has,
        _ => {}
    }
    let default = match template {
        // A template that does not name its type cannot be compared with anything.
        Some(template) => match &template.instance_type {
            Some(name) => name.clone(),
            None if asks_for_type(&request.spec, config) => config.instance_type.clone(),
            None => {
                return Ok(vec![TypeOffer::new(TEMPLATE_TYPE).with_confidential(confidential)]);
            }
        },
        None => config.instance_type.clone(),
    };
    if template.is_some() && !asks_for_type(&request.spec, config) {
        // The operator chose the type in the template: sizes of the request are no reason for another one.
        (spec.vcpus, spec.memory_mib) = (0, 0);
    }
    let names: Vec<String> =
        [&default].into_iter().chain(&config.instance_types).chain(&config.fallback_types).cloned().collect();
    let described = known.types(ctx, calls, &names).await?;
    if confidential && !described.iter().any(|t| t.sev_snp) {
        return Err(Error::unsupported("no configured instance type can be confidential by AMD SEV-SNP")
            .with("types", names.join(", "))
            .with("set", "PODVM_INSTANCE_TYPES, or DISABLECVM for machines that are not confidential"));
    }
    let interfaces = u32::try_from(request.networks.len()).unwrap_or(u32::MAX);
    let fits_otherwise = |t: &TypeInfo| t.max_interfaces.is_none_or(|max| max >= interfaces);
    let list = |names: &[String]| {
        let of = |name: &String| described.iter().find(|t| t.name == *name && fits_otherwise(t));
        names.iter().filter_map(of).map(|t| for_choice(t)).collect::<Vec<_>>()
    };
    let catalogue = Catalogue::new(
        list(&[std::slice::from_ref(&default), &config.instance_types].concat()),
        config.instance_types.clone(),
        &default,
        "PODVM_INSTANCE_TYPES",
    );
    // The operator's default is what a request for nothing gets, with GPUs too, unless it cannot be used at all.
    let asked = &request.spec;
    let for_nothing = asked.instance_type.is_none()
        && asked.gpu_model.is_none()
        && asked.architecture.is_none()
        && (spec.gpus, spec.vcpus, spec.memory_mib) == (0, 0, 0);
    let default_serves = described.iter().find(|t| t.name == default).is_some_and(|t| {
        let architecture = for_choice(t).architecture;
        let runs = architecture.is_none() || spec.architecture.is_none() || architecture == spec.architecture;
        runs && fits_otherwise(t) && (!confidential || t.sev_snp)
    });
    let chosen = if for_nothing && default_serves { default } else { catalogue.choose(&spec)? };
    let mut offers = vec![chosen.clone()];
    if request.spec.instance_type.is_none() {
        offers.extend(fallbacks(&list(&config.fallback_types), &list(std::slice::from_ref(&chosen)), &spec));
    }
    let snp = |name: &str| described.iter().any(|t| t.name == name && t.sev_snp);
    Ok(offers.iter().map(|name| TypeOffer::new(name).with_confidential(snp(name))).collect())
}

/// Whether the request asks for a type, by name or by properties that a launch template's operator may not have meant.
fn asks_for_type(spec: &InstanceSpec, config: &Config) -> bool {
    spec.instance_type.is_some() || spec.gpus > 0 || !config.instance_types.is_empty()
}

/// Returns the fallback types, in the operator's order, that serve the request; and where it asks for no size, those that
/// are no smaller than the type it would have had.
fn fallbacks(
    listed: &[cloud_providers::choice::InstanceType],
    chosen: &[cloud_providers::choice::InstanceType],
    spec: &InstanceSpec,
) -> Vec<String> {
    let mut spec = spec.clone();
    if spec.gpus == 0
        && (spec.vcpus == 0 || spec.memory_mib == 0)
        && let Some(chosen) = chosen.first()
    {
        (spec.vcpus, spec.memory_mib) = (chosen.vcpus, chosen.memory_mib);
    }
    let serves = |t: &&cloud_providers::choice::InstanceType| {
        let alone =
            Catalogue::new(vec![(*t).clone()], vec![t.name.clone()], "", "PODVM_FALLBACK_INSTANCE_TYPES");
        alone.choose(&spec).is_ok()
    };
    listed.iter().filter(serves).map(|t| t.name.clone()).collect()
}

/// Returns the subnets to try, each with its zone.
async fn places(
    ctx: &OpContext,
    calls: &Calls,
    known: &Known,
    config: &Config,
    shape: &Shape,
) -> Result<Vec<Place>> {
    if shape.of_template {
        return Ok(vec![Place::default()]);
    }
    let wished = |nic: &Nic| nic.subnet.clone();
    let subnets = match shape.nics.first().and_then(wished) {
        Some(subnet) => vec![subnet],
        None => config.subnets.clone(),
    };
    if subnets.is_empty() {
        // EC2 takes the default VPC then.
        return Ok(vec![Place::default()]);
    }
    let others: Vec<String> = shape.nics.iter().skip(1).filter_map(wished).collect();
    let all: Vec<String> = subnets.iter().chain(&others).cloned().collect();
    let described = match known.subnets(ctx, calls, &all).await {
        // The existing programs launch into a subnet that they cannot read.
        Err(error) if *error.kind() == ErrorKind::Permission && all.len() == 1 => {
            return Ok(vec![Place::default().with_subnet(&subnets[0])]);
        }
        described => described?,
    };
    let zone_of =
        |id: &str| described.iter().find(|s| s.id == id).map(|s| s.zone.clone()).unwrap_or_default();
    let fits = |zone: &String| others.iter().all(|other| zone_of(other) == *zone);
    let mut places = Vec::new();
    for subnet in subnets {
        let zone = zone_of(&subnet);
        if fits(&zone) {
            places.push(Place::zone(zone).with_subnet(subnet));
        }
    }
    if places.is_empty() {
        return Err(Error::config("the interfaces of the request are in different zones")
            .with("subnets", all.join(", ")));
    }
    Ok(places)
}

/// Adds the zones that offer each type, where there is a choice of places. Without the right to ask, EC2 says it place by
/// place.
async fn with_zones(
    ctx: &OpContext,
    calls: &Calls,
    known: &Known,
    types: Vec<TypeOffer>,
    places: &[Place],
) -> Result<Vec<TypeOffer>> {
    if places.len() < 2 || places.iter().any(|p| p.zone.is_none()) {
        return Ok(types);
    }
    let names: Vec<String> = types.iter().map(|t| t.name.clone()).collect();
    let mut zones = match known.zones(ctx, calls, &names).await {
        Ok(zones) => zones,
        Err(error) if *error.kind() == ErrorKind::Cancelled => return Err(error),
        Err(error) => {
            tracing::debug!(provider = crate::NAME, %error, "EC2 does not tell which zones offer a type");
            return Ok(types);
        }
    };
    let mut with = |offer: TypeOffer| match zones.remove(&offer.name) {
        Some(zones) => offer.with_zones(zones.iter().cloned()),
        None => offer,
    };
    Ok(types.into_iter().map(&mut with).collect())
}

/// Sizes the root volume: what is asked for, but never less than the image needs.
fn root_volume(
    request: &CreateRequest,
    config: &Config,
    image: Option<&Image>,
) -> Result<Option<RootVolume>> {
    let wanted = request.spec.root_disk_gib.unwrap_or(config.root_volume_gib);
    let Some((image, device)) = image.and_then(|i| Some((i, i.root_device.clone()?))) else {
        if request.spec.root_disk_gib.is_some() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the root disk cannot be sized: nothing tells its device",
            )
            .with("image", image.map(|i| i.id.as_str()).unwrap_or("of the launch template")));
        }
        return Ok(None);
    };
    let least = image.mappings.iter().find(|m| m.device == device).and_then(|m| m.size_gib);
    let size_gib = (wanted > 0).then(|| wanted.max(least.unwrap_or_default()));
    Ok(Some(RootVolume { device, size_gib }))
}

fn image_error(error: Error, request: &CreateRequest) -> Error {
    match (&request.spec.image, error.kind()) {
        (Some(image), ErrorKind::Config) => error.with("requested image", image),
        _ => error,
    }
}

//! RunInstances: what is looked at before, and what is missing after.

use anyhow::Result;
use tokio::time::Instant;

use super::{Ec2, Life, State, error, xml};
use crate::message::{Answer, Form, Request};
use crate::upstream::Upstream;

impl Ec2 {
    /// Refuses what EC2 refuses, launches, and adds what the emulator leaves out.
    pub(super) async fn run(&self, request: &Request, form: &Form, upstream: &Upstream) -> Result<Answer> {
        if let Some(refused) = self.refuse_launch(request, form, upstream).await? {
            return Ok(refused);
        }
        if let Some(refused) = self.lack(request, form, upstream).await? {
            return Ok(refused);
        }
        let answer = self.send(upstream, &request.with_form(&completed(form))).await?;
        if !answer.is_success() {
            return Ok(answer);
        }
        let (interfaces, answer) = self.launched(form, answer)?;
        self.tag_interfaces(request, form, &interfaces, upstream).await?;
        Ok(answer)
    }

    /// Images and types that do not exist: the emulator launches them.
    async fn refuse_launch(
        &self,
        request: &Request,
        form: &Form,
        upstream: &Upstream,
    ) -> Result<Option<Answer>> {
        let template = form.0.iter().any(|(name, _)| name.starts_with("LaunchTemplate."));
        match form.get("ImageId") {
            Some(image) if !is_id("ami-", image) => {
                return Ok(Some(error(400, "InvalidAMIID.Malformed", &format!("Invalid id: \"{image}\""))));
            }
            Some(image) if !self.exists(request, "DescribeImages", "ImageId.1", image, upstream).await? => {
                let message = format!("The image id '[{image}]' does not exist");
                return Ok(Some(error(400, "InvalidAMIID.NotFound", &message)));
            }
            None if !template => {
                let message = "The request must contain the parameter ImageId";
                return Ok(Some(error(400, "MissingParameter", message)));
            }
            _ => {}
        }
        if let Some(kind) = form.get("InstanceType")
            && !self.exists(request, "DescribeInstanceTypes", "InstanceType.1", kind, upstream).await?
        {
            // RunInstances calls it a wrong value; only describing says InvalidInstanceType.
            let message = format!("Invalid value '{kind}' for InstanceType.");
            return Ok(Some(error(400, "InvalidParameterValue", &message)));
        }
        Ok(None)
    }

    /// Whether describing finds it; what was found once is not asked for again.
    async fn exists(
        &self,
        request: &Request,
        action: &str,
        field: &str,
        id: &str,
        upstream: &Upstream,
    ) -> Result<bool> {
        if self.world().known.contains(id) {
            return Ok(true);
        }
        let fields = [(field.to_owned(), id.to_owned())];
        let answer = self.ask(upstream, request, action, &fields).await?;
        let found = answer.is_success()
            && answer.text()?.contains(&format!(">{id}<"))
            // An image that is gone is described as such, and launches nothing.
            && !answer.text()?.contains("<imageState>deregistered<");
        if found {
            self.world().known.insert(id.to_owned());
        }
        Ok(found)
    }

    /// Says no where there is a shortage of what is asked for.
    async fn lack(&self, request: &Request, form: &Form, upstream: &Upstream) -> Result<Option<Answer>> {
        if self.current().shortages.is_empty() {
            return Ok(None);
        }
        let subnet = form.get("SubnetId").or_else(|| form.get("NetworkInterface.1.SubnetId"));
        let zone = match (form.get("Placement.AvailabilityZone"), subnet) {
            (Some(zone), _) => Some(zone.to_owned()),
            (None, Some(subnet)) => self.zone(request, subnet, upstream).await?,
            (None, None) => None,
        };
        let kind = form.get("InstanceType");
        let spot = form.get("InstanceMarketOptions.MarketType") == Some("spot");
        let mut settings = self.lock_settings();
        let fits = |wanted: &Option<String>, given: Option<&str>| {
            wanted.as_ref().is_none_or(|wanted| Some(wanted.as_str()) == given)
        };
        let Some(shortage) = settings.shortages.iter_mut().find(|shortage| {
            fits(&shortage.zone, zone.as_deref())
                && fits(&shortage.subnet, subnet)
                && fits(&shortage.instance_type, kind)
                && shortage.spot.is_none_or(|wanted| wanted == spot)
                && shortage.times != Some(0)
        }) else {
            return Ok(None);
        };
        if let Some(times) = &mut shortage.times {
            *times -= 1;
        }
        let (kind, zone) = (kind.unwrap_or("requested"), zone.as_deref().unwrap_or("requested"));
        let message = match shortage.code.as_str() {
            "InsufficientInstanceCapacity" => format!(
                "We currently do not have sufficient {kind} capacity in the Availability Zone you requested ({zone}). \
                 Our system will be working on provisioning additional capacity."
            ),
            "InsufficientFreeAddressesInSubnet" => format!(
                "There are not enough free addresses in subnet '{}' to satisfy the requested number of instances.",
                subnet.unwrap_or("requested")
            ),
            "Unsupported" => format!(
                "Your requested instance type ({kind}) is not supported in your requested Availability Zone ({zone})."
            ),
            "VcpuLimitExceeded" => {
                "You have requested more vCPU capacity than your current vCPU limit allows for the \
                 instance bucket that the specified instance type belongs to."
                    .to_owned()
            }
            "MaxSpotInstanceCountExceeded" => "Max spot instance count exceeded".to_owned(),
            code => format!("{code}: {kind} in {zone}"),
        };
        Ok(Some(error(shortage.status(), &shortage.code, &message)))
    }

    async fn zone(&self, request: &Request, subnet: &str, upstream: &Upstream) -> Result<Option<String>> {
        if let Some(zone) = self.world().zones.get(subnet) {
            return Ok(Some(zone.clone()));
        }
        let fields = [("SubnetId.1".to_owned(), subnet.to_owned())];
        let answer = self.ask(upstream, request, "DescribeSubnets", &fields).await?;
        let zone = if answer.is_success() {
            xml::all(answer.text()?, "availabilityZone")?.into_iter().next()
        } else {
            None
        };
        if let Some(zone) = &zone {
            self.world().zones.insert(subnet.to_owned(), zone.clone());
        }
        Ok(zone)
    }

    /// Notes what was launched, and says that it is not running yet. Returns the interfaces too.
    fn launched(&self, form: &Form, answer: Answer) -> Result<(Vec<String>, Answer)> {
        let text = answer.text()?.to_owned();
        let document = xml::parse(&text)?;
        let now = Instant::now();
        let settings = self.current();
        let mut interfaces = Vec::new();
        let mut edits = xml::Edits::default();
        let mut world = self.world();
        for instance in xml::items(document.root_element(), "instancesSet") {
            let Some(id) = xml::text(instance, &["instanceId"]) else { continue };
            let life = Life { launched: now, terminated: None };
            world.lives.insert(id.to_owned(), life);
            super::seen::show(&mut edits, instance, life.state(now, &settings));
            if life.state(now, &settings) == State::Running {
                // Also where it is not waited for, the first answer never says more.
                super::seen::show(&mut edits, instance, State::Pending);
            }
            for interface in xml::items(instance, "networkInterfaceSet") {
                let Some(eni) = xml::text(interface, &["networkInterfaceId"]) else { continue };
                let index = xml::text(interface, &["attachment", "deviceIndex"]).unwrap_or("0");
                let given = deletes(form, index);
                world.goes_with.insert(eni.to_owned(), given);
                interfaces.push(eni.to_owned());
            }
        }
        Ok((interfaces, answer.with_body(edits.apply(&text))))
    }

    /// The emulator tags instances and volumes only.
    async fn tag_interfaces(
        &self,
        request: &Request,
        form: &Form,
        interfaces: &[String],
        upstream: &Upstream,
    ) -> Result<()> {
        let tags = tags_for(form, "network-interface");
        if tags.is_empty() || interfaces.is_empty() {
            return Ok(());
        }
        let mut fields: Vec<(String, String)> = Vec::new();
        for (index, id) in interfaces.iter().enumerate() {
            fields.push((format!("ResourceId.{}", index + 1), id.clone()));
        }
        for (index, (key, value)) in tags.iter().enumerate() {
            fields.push((format!("Tag.{}.Key", index + 1), key.clone()));
            fields.push((format!("Tag.{}.Value", index + 1), value.clone()));
        }
        self.ask(upstream, request, "CreateTags", &fields).await.map(drop)
    }
}

/// Returns the tags that a request has for one kind of resource.
pub(super) fn tags_for(form: &Form, kind: &str) -> Vec<(String, String)> {
    let mut tags = Vec::new();
    for spec in form.numbers("TagSpecification") {
        let prefix = format!("TagSpecification.{spec}");
        if form.get(&format!("{prefix}.ResourceType")) != Some(kind) {
            continue;
        }
        for tag in form.numbers(&format!("{prefix}.Tag")) {
            let field = |name: &str| form.get(&format!("{prefix}.Tag.{tag}.{name}")).unwrap_or_default();
            tags.push((field("Key").to_owned(), field("Value").to_owned()));
        }
    }
    tags
}

/// Whether the interface with this index goes with the instance: it does unless the request says otherwise, except for
/// one that was there before.
fn deletes(form: &Form, index: &str) -> bool {
    let spec = form
        .numbers("NetworkInterface")
        .into_iter()
        .find(|number| form.get(&format!("NetworkInterface.{number}.DeviceIndex")).unwrap_or("0") == index);
    let Some(spec) = spec else { return true };
    let field = |name: &str| form.get(&format!("NetworkInterface.{spec}.{name}"));
    match field("DeleteOnTermination") {
        Some(value) => value == "true",
        None => field("NetworkInterfaceId").is_none(),
    }
}

/// Adds what the service takes for granted and the emulator does not: disks go with their instance.
fn completed(form: &Form) -> Form {
    let mut form = form.clone();
    for number in form.numbers("BlockDeviceMapping") {
        let prefix = format!("BlockDeviceMapping.{number}.Ebs.");
        let name = format!("{prefix}DeleteOnTermination");
        if form.get(&name).is_none() && form.0.iter().any(|(key, _)| key.starts_with(&prefix)) {
            form.push(name, "true");
        }
    }
    form
}

/// Whether something has the form of an id: a prefix and 8 or 17 hexadecimal digits.
fn is_id(prefix: &str, id: &str) -> bool {
    id.strip_prefix(prefix).is_some_and(|digits| {
        [8, 17].contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit())
    })
}

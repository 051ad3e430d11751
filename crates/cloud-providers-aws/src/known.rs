//! What EC2 said about types, images, subnets and the launch template, asked once.

use std::{collections::HashMap, sync::Arc};

use cloud_providers::{
    Architecture, ConfidentialType, Error, ErrorKind, OpContext, Result, choice::InstanceType,
};
use tokio::sync::Mutex;

use crate::{
    client::{Image, LaunchTemplate, LaunchTemplateRef, Subnet, TYPES_PER_CALL, TypeInfo, TypeOffering},
    config::Config,
    remote::{Calls, pages, whole},
};

/// Everything that is kept. Types, images and zones do not change under their name.
#[derive(Debug, Default)]
pub(crate) struct Known {
    types: Kept<TypeInfo>,
    images: Kept<Image>,
    subnets: Kept<Subnet>,
    zones: Kept<Vec<String>>,
    template: Mutex<Option<Arc<LaunchTemplate>>>,
    /// What types are known to be, for answers without a remote call.
    seen: std::sync::Mutex<HashMap<String, Arc<TypeInfo>>>,
}

/// Answers by name. The lock is held while EC2 is asked, so that many creates at once ask once.
#[derive(Debug)]
struct Kept<V>(Mutex<HashMap<String, Arc<V>>>);

impl<V> Default for Kept<V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<V> Kept<V> {
    /// Returns the answers for `names`, in their order, and asks for those that are missing.
    async fn get(
        &self,
        ctx: &OpContext,
        names: &[String],
        ask: impl AsyncFnOnce(Vec<String>) -> Result<Vec<(String, V)>>,
    ) -> Result<Vec<Arc<V>>> {
        let mut kept = ctx.run(async { Ok(self.0.lock().await) }).await?;
        let mut missing: Vec<String> = Vec::new();
        for name in names {
            if !kept.contains_key(name) && !missing.contains(name) {
                missing.push(name.clone());
            }
        }
        if !missing.is_empty() {
            let answers = ask(missing).await?;
            kept.extend(answers.into_iter().map(|(name, value)| (name, Arc::new(value))));
        }
        Ok(names.iter().filter_map(|name| kept.get(name).cloned()).collect())
    }
}

impl Known {
    /// Describes types, a hundred in one call.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] naming the types that EC2 does not know.
    pub(crate) async fn types(
        &self,
        ctx: &OpContext,
        calls: &Calls,
        names: &[String],
    ) -> Result<Vec<Arc<TypeInfo>>> {
        let ask = async |missing: Vec<String>| {
            let mut all = Vec::new();
            for chunk in missing.chunks(TYPES_PER_CALL) {
                let call = calls.ec2.describe_instance_types(chunk);
                let answer = calls.call(ctx, "DescribeInstanceTypes", call).await.map_err(type_error)?;
                all.extend(answer.into_iter().map(|t| (t.name.clone(), t)));
            }
            let unknown: Vec<&str> =
                missing.iter().filter(|m| !all.iter().any(|(n, _)| n == *m)).map(String::as_str).collect();
            if unknown.is_empty() {
                return Ok(all);
            }
            Err(type_error(
                Error::config("EC2 does not know all instance types").with("types", unknown.join(", ")),
            ))
        };
        let types = self.types.get(ctx, names, ask).await?;
        let mut seen = self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        seen.extend(types.iter().map(|t| (t.name.clone(), t.clone())));
        Ok(types)
    }

    /// Returns the types that EC2 described so far.
    pub(crate) fn seen(&self) -> Vec<Arc<TypeInfo>> {
        let seen = self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        seen.values().cloned().collect()
    }

    /// Describes an image.
    pub(crate) async fn image(&self, ctx: &OpContext, calls: &Calls, id: &str) -> Result<Arc<Image>> {
        let ask = async |missing: Vec<String>| {
            let call = calls.ec2.describe_images(&missing);
            let answer = calls.call(ctx, "DescribeImages", call).await?;
            Ok(answer.into_iter().map(|i| (i.id.clone(), i)).collect())
        };
        let found = self.images.get(ctx, &[id.to_owned()], ask).await?;
        found.into_iter().next().ok_or_else(|| {
            Error::config("EC2 does not know the image").with("image", id).with("set", "PODVM_AMI_ID")
        })
    }

    /// Describes subnets, in the order of `ids`.
    pub(crate) async fn subnets(
        &self,
        ctx: &OpContext,
        calls: &Calls,
        ids: &[String],
    ) -> Result<Vec<Arc<Subnet>>> {
        let ask = async |missing: Vec<String>| {
            let call = calls.ec2.describe_subnets(&missing);
            let answer = calls.call(ctx, "DescribeSubnets", call).await?;
            Ok(answer.into_iter().map(|s| (s.id.clone(), s)).collect())
        };
        let found = self.subnets.get(ctx, ids, ask).await?;
        let missing: Vec<&str> =
            ids.iter().filter(|id| !found.iter().any(|s| s.id == **id)).map(String::as_str).collect();
        if missing.is_empty() {
            return Ok(found);
        }
        Err(Error::config("EC2 does not know all subnets")
            .with("subnets", missing.join(", "))
            .with("set", "AWS_SUBNET_ID"))
    }

    /// Returns the zones that offer a type.
    pub(crate) async fn zones(
        &self,
        ctx: &OpContext,
        calls: &Calls,
        names: &[String],
    ) -> Result<HashMap<String, Arc<Vec<String>>>> {
        let ask = async |missing: Vec<String>| {
            let found: Vec<TypeOffering> = whole(pages!(
                calls,
                ctx,
                "DescribeInstanceTypeOfferings",
                describe_instance_type_offerings,
                &missing
            ))?;
            let zones = |name: &String| {
                found.iter().filter(|o| o.instance_type == *name).map(|o| o.zone.clone()).collect()
            };
            Ok(missing.iter().map(|name| (name.clone(), zones(name))).collect())
        };
        let found = self.zones.get(ctx, names, ask).await?;
        Ok(names.iter().cloned().zip(found).collect())
    }

    /// Returns what the configured launch template says; nothing when the role may not read it.
    pub(crate) async fn template(
        &self,
        ctx: &OpContext,
        calls: &Calls,
        config: &Config,
    ) -> Result<Option<Arc<LaunchTemplate>>> {
        let Some(named) = &config.template else { return Ok(None) };
        let mut kept = ctx.run(async { Ok(self.template.lock().await) }).await?;
        if let Some(known) = &*kept {
            return Ok(Some(known.clone()));
        }
        let named = LaunchTemplateRef::new(&named.name, &named.version);
        let call = calls.ec2.describe_launch_template_versions(&named);
        let template = match calls.call(ctx, "DescribeLaunchTemplateVersions", call).await {
            Ok(Some(template)) => template,
            Ok(None) => {
                return Err(Error::config("the launch template has no such version")
                    .with("template", &named.name)
                    .with("version", &named.version)
                    .with("set", "PODVM_LAUNCHTEMPLATE_NAME, PODVM_LAUNCHTEMPLATE_VERSION"));
            }
            // The existing programs launch from a template that they cannot read.
            Err(error) if *error.kind() == ErrorKind::Permission => {
                tracing::warn!(
                    provider = crate::NAME,
                    error = error.report(),
                    "the launch template cannot be read, so nothing in it is checked or added to"
                );
                LaunchTemplate::default()
            }
            Err(error) => return Err(error.with("set", "PODVM_LAUNCHTEMPLATE_NAME")),
        };
        let template = Arc::new(template);
        *kept = Some(template.clone());
        Ok(Some(template))
    }
}

fn type_error(error: Error) -> Error {
    if *error.kind() == ErrorKind::Config {
        error.with("set", "PODVM_INSTANCE_TYPE, PODVM_INSTANCE_TYPES, PODVM_FALLBACK_INSTANCE_TYPES")
    } else {
        error
    }
}

/// Reads EC2's word for an architecture.
pub(crate) fn architecture_of(word: &str) -> Option<Architecture> {
    match word {
        "x86_64" => Some(Architecture::X86_64),
        "arm64" => Some(Architecture::Aarch64),
        _ => None,
    }
}

/// Describes a type for the choice among types. A size that EC2 does not tell is none, which fits no wish for it.
pub(crate) fn for_choice(info: &TypeInfo) -> InstanceType {
    let mut described =
        InstanceType::new(&info.name, info.vcpus.unwrap_or_default(), info.memory_mib.unwrap_or_default())
            .with_gpus(info.gpus, info.gpu_model.clone());
    described.architecture = info.architectures.iter().find_map(|word| architecture_of(word));
    if info.sev_snp {
        described = described.with_confidential(ConfidentialType::SevSnp);
    }
    described
}

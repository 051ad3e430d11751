//! Which instance type serves a request.
//!
//! Every type is looked at, so a type that fits is always found. (A search that halves the list is wrong here: no order
//! of types makes "enough vCPUs and enough memory" hold for the first time at one place and ever after.)

use std::cmp::Reverse;

use serde::{Deserialize, Serialize};

use crate::{Architecture, Confidential, ConfidentialType, Error, InstanceSpec, Result};

/// One instance type of a cloud.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct InstanceType {
    /// The cloud's name for it.
    pub name: String,
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Number of GPUs.
    pub gpus: u32,
    /// GPU model, where known.
    pub gpu_model: Option<String>,
    /// Architecture; `None` when the cloud does not tell, which rules nothing out.
    pub architecture: Option<Architecture>,
    /// Kinds of confidential machines that it can be.
    pub confidential: Vec<ConfidentialType>,
    /// Price in any unit, the same one for all types of a list; `None` when unknown.
    pub price: Option<u64>,
}

impl InstanceType {
    /// Describes a type without GPUs.
    pub fn new(name: impl Into<String>, vcpus: u32, memory_mib: u64) -> Self {
        Self {
            name: name.into(),
            vcpus,
            memory_mib,
            gpus: 0,
            gpu_model: None,
            architecture: None,
            confidential: Vec::new(),
            price: None,
        }
    }

    /// Adds GPUs.
    #[must_use]
    pub fn with_gpus(mut self, number: u32, model: Option<String>) -> Self {
        self.gpus = number;
        self.gpu_model = model;
        self
    }

    /// Sets the architecture.
    #[must_use]
    pub fn with_architecture(mut self, architecture: Architecture) -> Self {
        self.architecture = Some(architecture);
        self
    }

    /// Adds a kind of confidential machine.
    #[must_use]
    pub fn with_confidential(mut self, kind: ConfidentialType) -> Self {
        self.confidential.push(kind);
        self
    }

    /// Sets the price.
    #[must_use]
    pub fn with_price(mut self, price: u64) -> Self {
        self.price = Some(price);
        self
    }

    /// Orders types by size: GPUs, memory, vCPUs, then name, so that the choice never depends on the list's order.
    fn size(&self) -> (u32, u64, u32, &str) {
        (self.gpus, self.memory_mib, self.vcpus, &self.name)
    }
}

/// The types of a cloud and what its operator allows of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Catalogue {
    /// What is known about types.
    pub types: Vec<InstanceType>,
    /// Names that may be used; empty allows the default only.
    pub allowed: Vec<String>,
    /// The type of a request that asks for nothing. It is used for that even when the list of allowed types lacks it.
    pub default: String,
    /// The variable or flag of the list of allowed types, named in errors.
    pub setting: String,
}

impl Catalogue {
    /// Makes a catalogue. `setting` is the variable or flag that holds the list of allowed types.
    pub fn new(
        types: Vec<InstanceType>,
        allowed: Vec<String>,
        default: impl Into<String>,
        setting: impl Into<String>,
    ) -> Self {
        Self { types, allowed, default: default.into(), setting: setting.into() }
    }

    /// Returns the name of the type for `spec`.
    ///
    /// - A type named in the request has priority over all sizes. It must be in the list of allowed types, and the
    ///   default is no exception: who asks for it by name is refused unless the list has it, as in the existing
    ///   programs. With an empty list only the default may be named.
    /// - A request for nothing gets the default.
    /// - Otherwise every allowed type is compared with what is asked. Types with GPUs serve only requests for GPUs.
    ///   When vCPUs or memory alone is asked for, or a property without a size, the default is preferred if it will do.
    /// - Of the types that fit, the cheapest is taken when the price of each is known, else the smallest in the order
    ///   GPUs, memory, vCPUs, name.
    ///
    /// A type that is named or preferred is still refused when it is known to be of another architecture, or not
    /// confidential as asked.
    ///
    /// # Errors
    ///
    /// [`crate::ErrorKind::Config`]: outside the allowed list; or nothing fits, with the requirements that no type
    /// meets, and the closest type with what it lacks.
    pub fn choose(&self, spec: &InstanceSpec) -> Result<String> {
        let wanted = Wanted::of(spec);
        if let Some(name) = spec.instance_type.as_deref().map(str::trim).filter(|n| !n.is_empty()) {
            self.check_allowed(name)?;
            return self.check_properties(name, &wanted);
        }
        let sized = wanted.gpus > 0 || (wanted.vcpus > 0 && wanted.memory_mib > 0);
        if !sized && !self.default.is_empty() {
            let known = self.known(&self.default);
            if wanted.is_nothing() || known.is_some_and(|t| wanted.lacks(t).is_empty()) {
                return Ok(self.default.clone());
            }
        }
        let pool: Vec<&InstanceType> = self.types.iter().filter(|t| self.is_allowed(&t.name)).collect();
        let fitting: Vec<&InstanceType> =
            pool.iter().copied().filter(|t| wanted.lacks(t).is_empty()).collect();
        let priced = fitting.iter().all(|t| t.price.is_some());
        fitting
            .into_iter()
            .min_by_key(|t| (t.price.filter(|_| priced), t.size()))
            .map(|t| t.name.clone())
            .ok_or_else(|| self.no_match(&wanted, &pool))
    }

    fn known(&self, name: &str) -> Option<&InstanceType> {
        self.types.iter().find(|t| t.name == name)
    }

    fn is_allowed(&self, name: &str) -> bool {
        if self.allowed.is_empty() { name == self.default } else { self.allowed.iter().any(|a| a == name) }
    }

    fn allowed_text(&self) -> String {
        match (self.allowed.is_empty(), self.default.is_empty()) {
            (false, _) => self.allowed.join(", "),
            (true, false) => format!("{} (the default)", self.default),
            (true, true) => "none".into(),
        }
    }

    fn check_allowed(&self, name: &str) -> Result<()> {
        if self.is_allowed(name) {
            return Ok(());
        }
        Err(Error::config("instance type is outside the allowed list")
            .with("requested", name)
            .with("allowed", self.allowed_text())
            .with("set", &self.setting))
    }

    /// Refuses a type, chosen by name, that is known not to be what the request needs beside its size.
    fn check_properties(&self, name: &str, wanted: &Wanted<'_>) -> Result<String> {
        let properties = Wanted {
            architecture: wanted.architecture,
            confidential: wanted.confidential,
            // GPUs of a named type are welcome.
            any_gpus: true,
            ..Wanted::default()
        };
        let lacks = self.known(name).map(|t| properties.lacks(t)).unwrap_or_default();
        if lacks.is_empty() {
            return Ok(name.to_owned());
        }
        Err(Error::config("the requested instance type does not fit the request")
            .with("requested", name)
            .with("it lacks", join(&lacks)))
    }

    fn no_match(&self, wanted: &Wanted<'_>, pool: &[&InstanceType]) -> Error {
        let error = Error::config("no allowed instance type fits the request").with("wanted", wanted.text());
        // Fewest requirements missed, then least missing, then smallest.
        let closest = pool
            .iter()
            .map(|t| (wanted.lacks(t), *t))
            .min_by_key(|(lacks, t)| (lacks.len(), lacks.iter().map(|l| l.permille).sum::<u64>(), t.size()));
        let Some((lacks, closest)) = closest else {
            return error
                .with("allowed", self.allowed_text())
                .with("reason", "nothing is known about the allowed types")
                .with("set", &self.setting);
        };
        let nobody: Vec<&str> = lacks
            .iter()
            .map(|l| l.requirement)
            .filter(|r| pool.iter().all(|t| wanted.lacks(t).iter().any(|l| l.requirement == *r)))
            .collect();
        let error = match nobody.is_empty() {
            true => error,
            false => error.with("met by no type", nobody.join(" and ")),
        };
        error
            .with("closest", &closest.name)
            .with("it lacks", join(&lacks))
            .with("types compared", pool.len())
            .with("set", &self.setting)
    }
}

/// What a type must have.
#[derive(Clone, Copy, Default)]
struct Wanted<'a> {
    gpus: u32,
    gpu_model: Option<&'a str>,
    /// GPUs that nobody asked for are no reason to refuse a type.
    any_gpus: bool,
    architecture: Option<Architecture>,
    confidential: Option<&'a Confidential>,
    vcpus: u32,
    memory_mib: u64,
}

/// A requirement that a type does not meet.
struct Lack {
    requirement: &'static str,
    text: String,
    /// How much of the requirement is missing; 1000 for what cannot be had in part.
    permille: u64,
}

impl<'a> Wanted<'a> {
    fn of(spec: &'a InstanceSpec) -> Self {
        let gpu_model = spec.gpu_model.as_deref().map(str::trim).filter(|m| !m.is_empty());
        Self {
            // A model without a number means one.
            gpus: spec.gpus.max(u32::from(gpu_model.is_some())),
            gpu_model,
            any_gpus: false,
            architecture: spec.architecture,
            confidential: match &spec.confidential {
                Confidential::Default | Confidential::No => None,
                demand => Some(demand),
            },
            vcpus: spec.vcpus,
            memory_mib: spec.memory_mib,
        }
    }

    fn is_nothing(&self) -> bool {
        self.gpus == 0
            && self.vcpus == 0
            && self.memory_mib == 0
            && self.architecture.is_none()
            && self.confidential.is_none()
    }

    fn text(&self) -> String {
        let mut parts = Vec::new();
        if self.gpus > 0 {
            let model = self.gpu_model.map(|m| format!(" of model {m}")).unwrap_or_default();
            parts.push(format!("GPUs {}{model}", self.gpus));
        }
        parts.extend(self.architecture.map(|a| a.to_string()));
        parts.extend(self.confidential.map(confidential_text));
        if self.vcpus > 0 {
            parts.push(format!("vCPUs {}", self.vcpus));
        }
        if self.memory_mib > 0 {
            parts.push(format!("memory {} MiB", self.memory_mib));
        }
        parts.join(", ")
    }

    fn lacks(&self, t: &InstanceType) -> Vec<Lack> {
        let mut lacks = Vec::new();
        let mut amount = |requirement, has: u64, wants: u64, unit: &str| {
            if has < wants {
                let text = format!("{requirement} {has} of {wants}{unit}");
                lacks.push(Lack { requirement, text, permille: 1000 - has * 1000 / wants });
            }
        };
        amount("GPUs", t.gpus.into(), self.gpus.into(), "");
        amount("vCPUs", t.vcpus.into(), self.vcpus.into(), "");
        amount("memory", t.memory_mib, self.memory_mib, " MiB");
        let mut whole = |requirement, text| lacks.push(Lack { requirement, text, permille: 1000 });
        if self.gpus == 0 && t.gpus > 0 && !self.any_gpus {
            whole("a type without GPUs", format!("a type without GPUs (it has {})", t.gpus));
        }
        if let Some(model) = self.gpu_model
            && !t.gpu_model.as_deref().is_some_and(|m| m.eq_ignore_ascii_case(model))
        {
            let has = t.gpu_model.as_deref().unwrap_or("an unknown one");
            whole("GPU model", format!("GPU model {model} (it has {has})"));
        }
        if let (Some(wants), Some(has)) = (self.architecture, t.architecture)
            && wants != has
        {
            whole("architecture", format!("architecture {wants} (it is {has})"));
        }
        let confidential = match self.confidential {
            Some(Confidential::Type(kind)) => t.confidential.contains(kind),
            Some(_) => !t.confidential.is_empty(),
            None => true,
        };
        if !confidential {
            whole("confidential type", self.confidential.map(confidential_text).unwrap_or_default());
        }
        lacks.sort_by_key(|l| Reverse(l.permille));
        lacks
    }
}

fn confidential_text(demand: &Confidential) -> String {
    match demand {
        Confidential::Type(kind) => format!("confidential type {kind}"),
        _ => "a confidential type".into(),
    }
}

fn join(lacks: &[Lack]) -> String {
    lacks.iter().map(|l| l.text.as_str()).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
#[path = "choice_tests.rs"]
mod tests;

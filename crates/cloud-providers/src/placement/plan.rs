//! The offerings of one request and their order.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind, Result};

/// How a machine is paid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Purchase {
    /// For as long as it runs; the cloud does not take it back.
    OnDemand,
    /// Cheaper, and the cloud may take it back.
    Spot,
}

impl Purchase {
    /// Returns the fixed word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OnDemand => "on-demand",
            Self::Spot => "spot",
        }
    }
}

impl fmt::Display for Purchase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which ways to pay are tried, in which order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum PurchaseOrder {
    /// On-demand only.
    #[default]
    OnDemand,
    /// Spot only.
    Spot,
    /// Spot, and on-demand where there is none.
    SpotThenOnDemand,
}

impl PurchaseOrder {
    /// The words that [`PurchaseOrder::from_str`] takes, for the declaration of an option.
    pub const WORDS: &'static [&'static str] = &["on-demand", "spot", "spot-then-on-demand"];

    /// Returns the ways to pay in their order.
    pub fn purchases(self) -> &'static [Purchase] {
        match self {
            Self::OnDemand => &[Purchase::OnDemand],
            Self::Spot => &[Purchase::Spot],
            Self::SpotThenOnDemand => &[Purchase::Spot, Purchase::OnDemand],
        }
    }
}

impl FromStr for PurchaseOrder {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "on-demand" => Ok(Self::OnDemand),
            "spot" => Ok(Self::Spot),
            "spot-then-on-demand" => Ok(Self::SpotThenOnDemand),
            _ => Err(Error::config("unknown purchase option")
                .with("given", text)
                .with("known", Self::WORDS.join(" "))),
        }
    }
}

/// A place that a machine can be in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Place {
    /// The zone, where the cloud has zones and the provider knows it.
    pub zone: Option<String>,
    /// The subnet, where one is chosen.
    pub subnet: Option<String>,
}

impl Place {
    /// Names a zone.
    pub fn zone(zone: impl Into<String>) -> Self {
        Self { zone: Some(zone.into()), subnet: None }
    }

    /// Names a subnet in it.
    #[must_use]
    pub fn with_subnet(mut self, subnet: impl Into<String>) -> Self {
        self.subnet = Some(subnet.into());
        self
    }
}

/// An instance type that may be tried.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TypeOffer {
    /// The cloud's name for it.
    pub name: String,
    /// Whether it can be confidential as the request asks.
    pub confidential: bool,
    /// Zones that have it; `None` when the provider does not know, which rules nothing out.
    pub zones: Option<Vec<String>>,
}

impl TypeOffer {
    /// Names a type that cannot be confidential.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), confidential: false, zones: None }
    }

    /// Says whether it can be confidential as the request asks.
    #[must_use]
    pub fn with_confidential(mut self, can: bool) -> Self {
        self.confidential = can;
        self
    }

    /// Says which zones have it.
    #[must_use]
    pub fn with_zones(mut self, zones: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.zones = Some(zones.into_iter().map(Into::into).collect());
        self
    }

    fn is_in(&self, zone: Option<&str>) -> bool {
        match (&self.zones, zone) {
            (Some(zones), Some(zone)) => zones.iter().any(|z| z == zone),
            _ => true,
        }
    }
}

/// One way to have the machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Offering {
    /// The zone, where known.
    pub zone: Option<String>,
    /// The subnet, where one is chosen.
    pub subnet: Option<String>,
    /// The cloud's name of the type.
    pub instance_type: String,
    /// How it is paid.
    pub purchase: Purchase,
    /// Whether the machine is made confidential.
    pub confidential: bool,
}

/// Short and in one order, for logs and as the placement in [`crate::Token::client_token`].
impl fmt::Display for Offering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.instance_type, self.purchase)?;
        if self.confidential {
            f.write_str(" confidential")?;
        }
        for (word, value) in [("zone", &self.zone), ("subnet", &self.subnet)] {
            if let Some(value) = value {
                write!(f, " {word} {value}")?;
            }
        }
        Ok(())
    }
}

/// The offerings of one request, all of them confidential or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    offerings: Vec<Offering>,
    confidential: bool,
}

impl Plan {
    /// Lists every offering: types in the order of preference, for each type the ways to pay, for each of these the
    /// places.
    ///
    /// So a type that is liked less is taken only when the better one is nowhere to be had, and where spot comes first
    /// every place is asked for spot before one is asked for on-demand. A confidential request is offered types that
    /// can be confidential, and nothing else. Doubles are left out.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] when a confidential request is left without a type; [`ErrorKind::Config`] when there
    /// is no type, no place, or no place that has one of the types.
    pub fn new(
        types: &[TypeOffer],
        places: &[Place],
        purchase: PurchaseOrder,
        confidential: bool,
    ) -> Result<Self> {
        let fitting: Vec<&TypeOffer> = types.iter().filter(|t| t.confidential || !confidential).collect();
        let names = || types.iter().map(|t| t.name.as_str()).collect::<Vec<_>>().join(", ");
        if types.is_empty() || places.is_empty() {
            let what = if types.is_empty() { "instance type" } else { "zone or subnet" };
            return Err(Error::config(format!("no {what} is left to place a machine")));
        }
        if fitting.is_empty() {
            return Err(
                Error::unsupported("no instance type can be confidential as asked").with("types", names())
            );
        }
        let mut offerings: Vec<Offering> = Vec::new();
        for offer in &fitting {
            for way in purchase.purchases() {
                for place in places.iter().filter(|p| offer.is_in(p.zone.as_deref())) {
                    let offering = Offering {
                        zone: place.zone.clone(),
                        subnet: place.subnet.clone(),
                        instance_type: offer.name.clone(),
                        purchase: *way,
                        confidential,
                    };
                    if !offerings.contains(&offering) {
                        offerings.push(offering);
                    }
                }
            }
        }
        if offerings.is_empty() {
            let zones: Vec<&str> = places.iter().filter_map(|p| p.zone.as_deref()).collect();
            return Err(Error::new(
                ErrorKind::Config,
                "no zone of the configured subnets has an allowed instance type",
            )
            .with("types", names())
            .with("zones", zones.join(", ")));
        }
        Ok(Self { offerings, confidential })
    }

    /// Returns the offerings in the order in which they are tried.
    pub fn offerings(&self) -> &[Offering] {
        &self.offerings
    }

    /// Returns whether the machine must be confidential; every offering is as this says.
    pub fn is_confidential(&self) -> bool {
        self.confidential
    }

    /// Leaves out the offerings for which `keep` is false, such as those in another zone than a volume.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] with `why` when none is left.
    pub fn retain(mut self, why: &str, keep: impl FnMut(&Offering) -> bool) -> Result<Self> {
        let before = self.offerings.len();
        self.offerings.retain(keep);
        if self.offerings.is_empty() {
            return Err(
                Error::config(format!("no place is left for the machine: {why}")).with("places", before)
            );
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(plan: &Plan) -> Vec<String> {
        plan.offerings().iter().map(ToString::to_string).collect()
    }

    fn places() -> [Place; 2] {
        [Place::zone("a").with_subnet("s1"), Place::zone("b").with_subnet("s2")]
    }

    #[test]
    fn the_order_is_types_then_ways_to_pay_then_places() {
        let types = [TypeOffer::new("big"), TypeOffer::new("small").with_zones(["b"])];
        let plan = Plan::new(&types, &places(), PurchaseOrder::SpotThenOnDemand, false).unwrap();
        assert_eq!(
            text(&plan),
            [
                "big spot zone a subnet s1",
                "big spot zone b subnet s2",
                "big on-demand zone a subnet s1",
                "big on-demand zone b subnet s2",
                "small spot zone b subnet s2",
                "small on-demand zone b subnet s2",
            ]
        );
        let plan = Plan::new(&types[..1], &[Place::default()], PurchaseOrder::Spot, false).unwrap();
        assert_eq!(text(&plan), ["big spot"]);
    }

    #[test]
    fn a_confidential_request_is_offered_confidential_types_only() {
        let types = [TypeOffer::new("plain"), TypeOffer::new("snp").with_confidential(true)];
        let plan = Plan::new(&types, &places(), PurchaseOrder::OnDemand, true).unwrap();
        assert!(plan.is_confidential() && plan.offerings().iter().all(|o| o.confidential));
        assert!(plan.offerings().iter().all(|o| o.instance_type == "snp"));
        let error = Plan::new(&types[..1], &places(), PurchaseOrder::OnDemand, true).unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("plain"), "{error}");
    }

    #[test]
    fn a_plan_without_offerings_says_what_is_missing() {
        let types = [TypeOffer::new("t").with_zones(["c"])];
        for (error, part) in [
            (Plan::new(&[], &places(), PurchaseOrder::Spot, false).unwrap_err(), "instance type"),
            (Plan::new(&types, &[], PurchaseOrder::Spot, false).unwrap_err(), "zone or subnet"),
            (Plan::new(&types, &places(), PurchaseOrder::Spot, false).unwrap_err(), "zones: a, b"),
        ] {
            assert_eq!(*error.kind(), ErrorKind::Config);
            assert!(error.to_string().contains(part), "{error}");
        }
        let plan = Plan::new(&[TypeOffer::new("t")], &places(), PurchaseOrder::Spot, false).unwrap();
        let one = plan.clone().retain("the volume is in zone b", |o| o.zone.as_deref() == Some("b")).unwrap();
        assert_eq!(text(&one), ["t spot zone b subnet s2"]);
        let error = plan.retain("the volume is in zone c", |_| false).unwrap_err();
        assert!(error.to_string().contains("zone c"), "{error}");
    }

    #[test]
    fn every_word_of_the_purchase_option_is_read() {
        for word in PurchaseOrder::WORDS {
            word.parse::<PurchaseOrder>().unwrap();
        }
        assert!("Spot ".parse::<PurchaseOrder>().unwrap_err().to_string().contains("spot-then-on-demand"));
    }
}

//! VPC, subnets, routes and a security group.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use aws_sdk_ec2::types::{
    AttributeBooleanValue, IpPermission, IpRange, LocationType, ResourceType, UserIdGroupPair,
};
use ipnet::Ipv4Net;

use crate::account::{Account, Said, code};
use crate::state::Network;
use crate::tags::{Name, filter};

/// The port of the forwarder in pod VMs.
const FORWARDER: i32 = 15150;
/// The port of the tunnel between worker and pod VM.
const TUNNEL: i32 = 4789;
const SSH: i32 = 22;

/// How the network is made.
#[derive(Clone, Debug)]
pub struct NetworkOptions {
    /// The addresses of the VPC; subnets are cut out of them.
    pub cidr: Ipv4Net,
    /// In how many zones there are subnets.
    pub zones: usize,
    /// The instance type that the zones have to offer.
    pub instance_type: String,
    /// From where SSH and the forwarder are reached, besides the network itself.
    pub reach_from: Vec<IpAddr>,
    /// A VPC that is there; it is used and never deleted.
    pub vpc: Option<String>,
}

impl Default for NetworkOptions {
    fn default() -> Self {
        Self {
            cidr: Ipv4Net::new_assert([10, 83, 0, 0].into(), 16),
            zones: 2,
            instance_type: "m6a.large".to_owned(),
            reach_from: Vec::new(),
            vpc: None,
        }
    }
}

impl Account {
    /// Makes the network, or finds the parts of it that are there.
    ///
    /// # Errors
    ///
    /// What the service said; what was made until then is found again by the next call, and by deleting.
    pub async fn network(&self, name: &Name, options: &NetworkOptions) -> Result<Network> {
        let zones = self.zones_with(&options.instance_type, options.zones).await?;
        let (vpc, cidr) = match &options.vpc {
            Some(vpc) => (vpc.clone(), self.cidr_of(vpc).await?),
            None => (self.vpc(name, options.cidr).await?, options.cidr),
        };
        // Subnets of 256 addresses, or what the VPC has room for.
        let prefix = cidr.prefix_len().max(24).max(cidr.prefix_len() + 2).min(28);
        let parts = cidr.subnets(prefix).with_context(|| format!("{cidr} is too small for subnets"))?;
        let mut subnets = Vec::new();
        for (zone, part) in zones.iter().zip(parts) {
            subnets.push(self.subnet(name, &vpc, zone, part).await?);
        }
        if options.vpc.is_none() {
            self.routes(name, &vpc, &subnets).await?;
        }
        let group = self.group(name, &vpc, &options.reach_from).await?;
        Ok(Network { vpc, subnets, zones, group })
    }

    /// The zones that offer a type, sorted, as many as are wanted and there are.
    async fn zones_with(&self, instance_type: &str, wanted: usize) -> Result<Vec<String>> {
        let mut pages = self
            .ec2
            .describe_instance_type_offerings()
            .location_type(LocationType::AvailabilityZone)
            .filters(filter("instance-type", &[instance_type]))
            .into_paginator()
            .send();
        let mut zones = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.said("cannot ask which zones offer a type")?;
            let offerings = page.instance_type_offerings();
            zones.extend(offerings.iter().filter_map(|offering| offering.location()).map(str::to_owned));
        }
        zones.sort();
        zones.truncate(wanted.max(1));
        ensure!(!zones.is_empty(), "no zone of {} offers {instance_type}", self.region());
        Ok(zones)
    }

    async fn cidr_of(&self, vpc: &str) -> Result<Ipv4Net> {
        let said = self.ec2.describe_vpcs().vpc_ids(vpc).send().await.said("cannot look at the VPC")?;
        let cidr =
            said.vpcs().first().and_then(|vpc| vpc.cidr_block()).context("the VPC has no addresses")?;
        Ok(cidr.parse()?)
    }

    async fn vpc(&self, name: &Name, cidr: Ipv4Net) -> Result<String> {
        let filters = name.filters("vpc");
        let said =
            self.ec2.describe_vpcs().set_filters(Some(filters)).send().await.said("cannot list VPCs")?;
        if let Some(vpc) = said.vpcs().first() {
            ensure!(
                vpc.cidr_block() == Some(&cidr.to_string()),
                "the VPC of set-up {} has the addresses {}, not {cidr}: delete it first, or give --cidr",
                name.as_str(),
                vpc.cidr_block().unwrap_or("unknown")
            );
            return vpc.vpc_id().map(str::to_owned).context("a VPC without an id");
        }
        let said = self
            .ec2
            .create_vpc()
            .cidr_block(cidr.to_string())
            .tag_specifications(name.spec(ResourceType::Vpc, "vpc"))
            .send()
            .await
            .said("cannot make the VPC")?;
        said.vpc().and_then(|vpc| vpc.vpc_id()).map(str::to_owned).context("a VPC without an id")
    }

    async fn subnet(&self, name: &Name, vpc: &str, zone: &str, cidr: Ipv4Net) -> Result<String> {
        let part = format!("subnet-{zone}");
        let filters = name.filters(&part);
        let said = self
            .ec2
            .describe_subnets()
            .set_filters(Some(filters))
            .send()
            .await
            .said("cannot list subnets")?;
        if let Some(id) = said.subnets().iter().find_map(|subnet| subnet.subnet_id()) {
            return Ok(id.to_owned());
        }
        let said = self
            .ec2
            .create_subnet()
            .vpc_id(vpc)
            .availability_zone(zone)
            .cidr_block(cidr.to_string())
            .tag_specifications(name.spec(ResourceType::Subnet, &part))
            .send()
            .await
            .said("cannot make a subnet")?;
        said.subnet()
            .and_then(|subnet| subnet.subnet_id())
            .map(str::to_owned)
            .context("a subnet without an id")
    }

    /// A gateway, and a route to it from the subnets.
    async fn routes(&self, name: &Name, vpc: &str, subnets: &[String]) -> Result<()> {
        let gateway = self.gateway(name).await?;
        let attached =
            self.ec2.attach_internet_gateway().internet_gateway_id(&gateway).vpc_id(vpc).send().await;
        if let Err(error) = attached
            && code(&error) != Some("Resource.AlreadyAssociated")
        {
            return Err(error).said("cannot attach the gateway");
        }
        let table = self.table(name, vpc).await?;
        let route = self
            .ec2
            .create_route()
            .route_table_id(&table)
            .destination_cidr_block("0.0.0.0/0")
            .gateway_id(&gateway);
        if let Err(error) = route.send().await
            && code(&error) != Some("RouteAlreadyExists")
        {
            return Err(error).said("cannot make the route to the outside");
        }
        let said = self.ec2.describe_route_tables().route_table_ids(&table).send().await;
        let said = said.said("cannot look at the route table")?;
        let there: Vec<&str> = said
            .route_tables()
            .iter()
            .flat_map(|table| table.associations())
            .filter_map(|association| association.subnet_id())
            .collect();
        for subnet in subnets.iter().filter(|subnet| !there.contains(&subnet.as_str())) {
            let associate = self.ec2.associate_route_table().route_table_id(&table).subnet_id(subnet);
            associate.send().await.said("cannot give a subnet the route")?;
        }
        for subnet in subnets {
            let public = AttributeBooleanValue::builder().value(false).build();
            let modify = self.ec2.modify_subnet_attribute().subnet_id(subnet).map_public_ip_on_launch(public);
            // Who wants a public address asks for it; nothing gets one by being there.
            modify.send().await.said("cannot set up a subnet")?;
        }
        Ok(())
    }

    async fn gateway(&self, name: &Name) -> Result<String> {
        let filters = Some(name.filters("gateway"));
        let said = self.ec2.describe_internet_gateways().set_filters(filters).send().await;
        let said = said.said("cannot list gateways")?;
        if let Some(id) = said.internet_gateways().iter().find_map(|gateway| gateway.internet_gateway_id()) {
            return Ok(id.to_owned());
        }
        let spec = name.spec(ResourceType::InternetGateway, "gateway");
        let said = self.ec2.create_internet_gateway().tag_specifications(spec).send().await;
        let said = said.said("cannot make the gateway")?;
        let id = said.internet_gateway().and_then(|gateway| gateway.internet_gateway_id());
        id.map(str::to_owned).context("a gateway without an id")
    }

    async fn table(&self, name: &Name, vpc: &str) -> Result<String> {
        let filters = Some(name.filters("routes"));
        let said = self.ec2.describe_route_tables().set_filters(filters).send().await;
        let said = said.said("cannot list route tables")?;
        if let Some(id) = said.route_tables().iter().find_map(|table| table.route_table_id()) {
            return Ok(id.to_owned());
        }
        let spec = name.spec(ResourceType::RouteTable, "routes");
        let said = self.ec2.create_route_table().vpc_id(vpc).tag_specifications(spec).send().await;
        let said = said.said("cannot make the route table")?;
        let id = said.route_table().and_then(|table| table.route_table_id());
        id.map(str::to_owned).context("a route table without an id")
    }

    /// A group whose members reach each other on the ports of pods, and which others reach from the given addresses only.
    async fn group(&self, name: &Name, vpc: &str, reach_from: &[IpAddr]) -> Result<String> {
        let filters = Some(name.filters("group"));
        let said = self.ec2.describe_security_groups().set_filters(filters).send().await;
        let said = said.said("cannot list security groups")?;
        let id = match said.security_groups().iter().find_map(|group| group.group_id()) {
            Some(id) => id.to_owned(),
            None => {
                let said = self
                    .ec2
                    .create_security_group()
                    .group_name(format!("{}-group", name.as_str()))
                    .description("workers and pod VMs of a set-up for tests")
                    .vpc_id(vpc)
                    .tag_specifications(name.spec(ResourceType::SecurityGroup, "group"))
                    .send()
                    .await
                    .said("cannot make the security group")?;
                said.group_id().map(str::to_owned).context("a security group without an id")?
            }
        };
        for rule in rules(&id, reach_from) {
            let authorize =
                self.ec2.authorize_security_group_ingress().group_id(&id).ip_permissions(rule).send().await;
            if let Err(error) = authorize
                && code(&error) != Some("InvalidPermission.Duplicate")
            {
                return Err(error).said("cannot open a port");
            }
        }
        Ok(id)
    }
}

/// One rule for each port and for each side from which it is reached, so that repeating adds what is missing.
fn rules(group: &str, reach_from: &[IpAddr]) -> Vec<IpPermission> {
    let rule = |protocol: &str, port: i32| {
        IpPermission::builder().ip_protocol(protocol).from_port(port).to_port(port)
    };
    let own = UserIdGroupPair::builder().group_id(group).build();
    let mut rules: Vec<IpPermission> = [("tcp", SSH), ("tcp", FORWARDER), ("udp", TUNNEL)]
        .into_iter()
        .map(|(protocol, port)| rule(protocol, port).user_id_group_pairs(own.clone()).build())
        .collect();
    for address in reach_from {
        for port in [SSH, FORWARDER] {
            let rule = rule("tcp", port);
            rules.push(match address {
                IpAddr::V4(address) => {
                    rule.ip_ranges(IpRange::builder().cidr_ip(format!("{address}/32")).build()).build()
                }
                IpAddr::V6(address) => {
                    let range = aws_sdk_ec2::types::Ipv6Range::builder().cidr_ipv6(format!("{address}/128"));
                    rule.ipv6_ranges(range.build()).build()
                }
            });
        }
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_open_to_the_world() {
        let outside = ["192.0.2.7".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        let rules = rules("sg-1", &outside);
        assert_eq!(rules.len(), 3 + 4);
        for rule in &rules {
            let wide = |cidr: Option<&str>| cidr.is_some_and(|cidr| cidr.ends_with("/0"));
            assert!(!rule.ip_ranges().iter().any(|range| wide(range.cidr_ip())), "{rule:?}");
            assert!(!rule.ipv6_ranges().iter().any(|range| wide(range.cidr_ipv6())), "{rule:?}");
        }
    }
}

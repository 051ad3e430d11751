//! Subnets, security groups, ports, the key pair, and the zones that offer the types.

use std::sync::Arc;

use cloud_providers::{Finding, OpContext, Result, VerifyReport};

use super::judge;
use crate::{
    AwsProvider,
    client::{LaunchTemplate, Rule, SecurityGroup, Subnet, TypeInfo},
    known::Known,
};

/// Fewer free addresses in a subnet deserve a look.
const FEW_ADDRESSES: u32 = 16;

impl AwsProvider {
    pub(super) async fn verify_network(
        &self,
        ctx: &OpContext,
        known: &Known,
        template: Option<&LaunchTemplate>,
        types: &[Arc<TypeInfo>],
        report: &mut VerifyReport,
    ) -> Result<()> {
        let ids = match template {
            Some(template) if !template.subnets.is_empty() => &template.subnets,
            _ => &self.config.subnets,
        };
        let subnets = self.verify_subnets(ctx, ids, report).await?;
        self.verify_zones(ctx, known, &subnets, types, report).await?;
        let groups = match template {
            Some(template) if !template.groups.is_empty() => &template.groups,
            _ => &self.config.groups,
        };
        self.verify_groups(ctx, groups, &subnets, report).await?;
        self.verify_key(ctx, template, report).await
    }

    async fn verify_subnets(
        &self,
        ctx: &OpContext,
        ids: &[String],
        report: &mut VerifyReport,
    ) -> Result<Vec<Subnet>> {
        let check = "subnets";
        if ids.is_empty() {
            report.push(Finding::not_checked(check, "none is named, so EC2 chooses one"));
            return Ok(Vec::new());
        }
        // Asked afresh: the number of free addresses changes.
        let call = self.calls.ec2.describe_subnets(ids);
        let found = match judge(check, self.calls.call(ctx, "DescribeSubnets", call).await)? {
            Ok(found) => found,
            Err(finding) => {
                report.push(finding.with_option("AWS_SUBNET_ID"));
                return Ok(Vec::new());
            }
        };
        for id in ids {
            let Some(subnet) = found.iter().find(|s| s.id == *id) else {
                report.push(
                    Finding::failed(check, format!("there is no subnet {id}")).with_option("AWS_SUBNET_ID"),
                );
                continue;
            };
            let free = subnet.free_addresses;
            let told = free.map_or(String::new(), |n| format!(", {n} free addresses"));
            let detail = format!("{id} in {}{told}", subnet.zone);
            report.push(match free {
                _ if subnet.state != "available" && !subnet.state.is_empty() => {
                    Finding::failed(check, format!("{id} is {}", subnet.state))
                }
                Some(0) => Finding::failed(check, detail)
                    .with_remedy("name another subnet too")
                    .with_option("AWS_SUBNET_ID"),
                Some(n) if n < FEW_ADDRESSES => Finding::warning(check, detail),
                _ => Finding::ok(check, detail),
            });
        }
        Ok(found)
    }

    /// Checks that the zones of the subnets have the types.
    async fn verify_zones(
        &self,
        ctx: &OpContext,
        known: &Known,
        subnets: &[Subnet],
        types: &[Arc<TypeInfo>],
        report: &mut VerifyReport,
    ) -> Result<()> {
        let check = "zones";
        if subnets.is_empty() || types.is_empty() {
            report.push(Finding::not_checked(check, "subnets or instance types are not known"));
            return Ok(());
        }
        let names: Vec<String> = types.iter().map(|t| t.name.clone()).collect();
        let offered = match judge(check, known.zones(ctx, &self.calls, &names).await)? {
            Ok(offered) => offered,
            Err(finding) => {
                report.push(finding.with_remedy("allow ec2:DescribeInstanceTypeOfferings"));
                return Ok(());
            }
        };
        for (index, name) in names.iter().enumerate() {
            let has = |zone: &String| offered.get(name).is_some_and(|zones| zones.contains(zone));
            let without: Vec<&str> =
                subnets.iter().map(|s| &s.zone).filter(|zone| !has(zone)).map(String::as_str).collect();
            let detail = format!("{name} is not offered in {}", without.join(", "));
            report.push(match without.len() {
                0 => Finding::ok(check, format!("{name} is offered in the zone of every subnet")),
                // Pods that ask for nothing get the first one.
                n if n == subnets.len() && index == 0 => {
                    Finding::failed(check, detail).with_option("PODVM_INSTANCE_TYPE, AWS_SUBNET_ID")
                }
                _ => Finding::warning(check, detail),
            });
        }
        Ok(())
    }

    async fn verify_groups(
        &self,
        ctx: &OpContext,
        ids: &[String],
        subnets: &[Subnet],
        report: &mut VerifyReport,
    ) -> Result<()> {
        let (check, option) = ("security-groups", "AWS_SG_IDS");
        if ids.is_empty() {
            let why = "none is named, so EC2 takes the default group of the VPC, whose rules are not known";
            report.push(Finding::not_checked(check, why));
            return Ok(());
        }
        let call = self.calls.ec2.describe_security_groups(ids);
        let groups = match judge(check, self.calls.call(ctx, "DescribeSecurityGroups", call).await)? {
            Ok(groups) => groups,
            Err(finding) => {
                report.push(finding.with_option(option));
                return Ok(());
            }
        };
        let elsewhere = |group: &&SecurityGroup| {
            group.vpc.as_ref().is_some_and(|vpc| subnets.iter().any(|s| !s.vpc.is_empty() && s.vpc != *vpc))
        };
        let wrong: Vec<&str> = groups.iter().filter(elsewhere).map(|g| g.id.as_str()).collect();
        report.push(match wrong.is_empty() {
            true => Finding::ok(check, ids.join(", ")),
            false => Finding::failed(check, format!("not in the VPC of the subnets: {}", wrong.join(", ")))
                .with_option(option),
        });
        for (port, protocol) in &self.config.guest_ports {
            let check = "ports";
            let sources: Vec<&str> = groups
                .iter()
                .flat_map(|g| &g.ingress)
                .filter(|rule| admits(rule, *port, protocol))
                .flat_map(|rule| rule.groups.iter().chain(&rule.ranges).map(String::as_str))
                .collect();
            report.push(match sources.is_empty() {
                false => Finding::ok(check, format!("{port}/{protocol} is open for {}", sources.join(", "))),
                true => Finding::failed(check, format!("no rule lets {port}/{protocol} in"))
                    .with_remedy(format!(
                        "aws ec2 authorize-security-group-ingress --group-id {} --protocol {protocol} --port {port} \
                         --source-group <the workers' group>",
                        ids[0]
                    ))
                    .with_option("AWS_SG_IDS, or AWS_GUEST_PORTS where other ports are used"),
            });
        }
        Ok(())
    }

    async fn verify_key(
        &self,
        ctx: &OpContext,
        template: Option<&LaunchTemplate>,
        report: &mut VerifyReport,
    ) -> Result<()> {
        let check = "key-pair";
        let of_template = template.and_then(|t| t.key_name.clone());
        let Some(name) = of_template.or_else(|| self.config.key_name.clone()) else {
            report.push(Finding::ok(check, "none, so nobody logs in to a machine"));
            return Ok(());
        };
        let names = [name.clone()];
        let call = self.calls.ec2.describe_key_pairs(&names);
        report.push(match judge(check, self.calls.call(ctx, "DescribeKeyPairs", call).await)? {
            Ok(found) if found.iter().any(|k| k.name == name) => Finding::ok(check, name),
            Ok(_) => {
                Finding::failed(check, format!("there is no key pair {name}")).with_option("SSH_KP_NAME")
            }
            Err(finding) => finding.with_option("SSH_KP_NAME"),
        });
        Ok(())
    }
}

/// Whether a rule lets something in to a port, from anywhere.
fn admits(rule: &Rule, port: u16, protocol: &str) -> bool {
    let number = if protocol == "tcp" { "6" } else { "17" };
    let all = rule.protocol == "-1";
    let same = rule.protocol.eq_ignore_ascii_case(protocol) || rule.protocol == number;
    let from = rule.from_port.filter(|p| *p >= 0).unwrap_or(0);
    let to = rule.to_port.filter(|p| *p >= 0).unwrap_or(i32::from(u16::MAX));
    let somebody = !rule.groups.is_empty() || !rule.ranges.is_empty();
    somebody && (all || (same && (from..=to).contains(&i32::from(port))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(protocol: &str, from: Option<i32>, to: Option<i32>) -> Rule {
        Rule {
            protocol: protocol.into(),
            from_port: from,
            to_port: to,
            groups: Vec::new(),
            ranges: vec!["10.0.0.0/8".into()],
        }
    }

    #[test]
    fn a_rule_admits_its_ports_of_its_protocol() {
        assert!(admits(&rule("-1", None, None), 15150, "tcp"));
        assert!(admits(&rule("tcp", Some(15000), Some(16000)), 15150, "tcp"));
        assert!(admits(&rule("17", Some(4789), Some(4789)), 4789, "udp"));
        assert!(admits(&rule("tcp", Some(-1), Some(-1)), 1, "tcp"));
        assert!(!admits(&rule("udp", Some(4789), Some(4789)), 4789, "tcp"));
        assert!(!admits(&rule("tcp", Some(22), Some(22)), 15150, "tcp"));
        let nobody = Rule { ranges: Vec::new(), ..rule("-1", None, None) };
        assert!(!admits(&nobody, 22, "tcp"));
    }
}

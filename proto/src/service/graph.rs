//! In which order services start: what somebody depends on comes first, or nothing starts at all.

use std::collections::BTreeMap;

use super::{Mistake, SERVICES_MAX, Service};

/// What is known of a guest's services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All of them.
    Whole,
    /// Those of the image are not; a dependency that is said to be one of them is believed.
    WithoutImage,
}

/// Indices, dependencies before their dependents, equals by name.
///
/// # Errors
/// Everything that is wrong: names that are there twice, dependencies that are not there, a cycle.
pub fn order(services: &[Service], scope: Scope) -> Result<Vec<usize>, Vec<Mistake>> {
    let mut mistakes = vec![];
    let of_file = |service: &Service, message| Mistake { file: service.file.clone(), line: None, message };
    let mut names: BTreeMap<&str, usize> = BTreeMap::new();
    for (index, service) in services.iter().enumerate() {
        if let Some(first) = names.insert(&service.name, index) {
            let other = &services[first].file;
            mistakes.push(of_file(service, format!("service `{}` is declared in {other}, too", service.name)));
        }
        if index == SERVICES_MAX {
            mistakes.push(of_file(service, format!("more than {SERVICES_MAX} services")));
        }
    }
    let mut edges: Vec<Vec<usize>> = vec![vec![]; services.len()];
    for (index, service) in services.iter().enumerate() {
        for dependency in &service.dependencies {
            match names.get(dependency.on.as_str()) {
                Some(on) => edges[index].push(*on),
                None if dependency.of_image && scope == Scope::WithoutImage => {}
                None => mistakes.push(Mistake {
                    file: service.file.clone(),
                    line: Some(dependency.line),
                    message: format!("there is no service `{}`", dependency.on.escape_debug()),
                }),
            }
        }
    }
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    sorted(&edges, names.values().copied()).map_err(|left| vec![cycle(services, &edges, &left)])
}

/// Those that were left over, where not all could be placed.
fn sorted(edges: &[Vec<usize>], by_name: impl Iterator<Item = usize>) -> Result<Vec<usize>, Vec<usize>> {
    let mut left: Vec<usize> = by_name.collect();
    let mut placed = vec![];
    loop {
        let free = left.iter().position(|index| edges[*index].iter().all(|on| placed.contains(on)));
        match free {
            Some(position) => placed.push(left.remove(position)),
            None if left.is_empty() => return Ok(placed),
            None => return Err(left),
        }
    }
}

/// Whoever is left over depends on somebody who is: following that leads around a cycle.
fn cycle(services: &[Service], edges: &[Vec<usize>], left: &[usize]) -> Mistake {
    let mut path: Vec<usize> = vec![];
    let mut at = left[0];
    while !path.contains(&at) {
        path.push(at);
        at = edges[at].iter().copied().find(|on| left.contains(on)).unwrap_or(at);
    }
    let begin = path.iter().position(|one| *one == at).unwrap_or(0);
    let around = &path[begin..];
    let line = |from: usize, to: usize| {
        let name = &services[to].name;
        services[from].dependencies.iter().find(|dependency| dependency.on == *name).map_or(0, |found| found.line)
    };
    let steps = around.iter().enumerate().map(|(step, from)| {
        let to = around[(step + 1) % around.len()];
        format!("`{}` ({}:{})", services[*from].name, services[*from].file, line(*from, to))
    });
    let message = format!(
        "services wait for each other: {} for `{}`",
        steps.collect::<Vec<_>>().join(" for "),
        services[at].name
    );
    let second = around[1 % around.len()];
    Mistake { file: services[at].file.clone(), line: Some(line(at, second)), message }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::service::parse;

    fn service(name: &str, requires: &[&str]) -> Service {
        parse(&format!("{name}.toml"), &format!("command = [\"x\"]\n\nrequires = {requires:?}")).unwrap()
    }

    fn names(services: &[Service]) -> Vec<&str> {
        order(services, Scope::Whole).unwrap().into_iter().map(|index| services[index].name.as_str()).collect()
    }

    #[test]
    fn dependencies_come_first_and_equals_by_name() {
        let services =
            [service("web", &["db", "cache"]), service("db", &["disk"]), service("disk", &[]), service("cache", &[])];
        assert_eq!(names(&services), ["cache", "disk", "db", "web"]);
        assert!(order(&[], Scope::Whole).unwrap().is_empty());
    }

    #[test]
    fn what_cannot_be_started_is_refused_with_file_and_line() {
        let refused = |services: &[Service], scope| super::super::listed(&order(services, scope).unwrap_err());
        let cycle = [service("a", &["b"]), service("b", &["c"]), service("c", &["b"]), service("d", &[])];
        let text = refused(&cycle, Scope::Whole);
        assert_eq!(text, "b.toml:3: services wait for each other: `b` (b.toml:3) for `c` (c.toml:3) for `b`");
        assert!(refused(&[service("a", &["a"])], Scope::Whole).starts_with("a.toml:3: "));
        let unknown = [service("a", &["x"]), service("b", &["y"])];
        assert_eq!(
            refused(&unknown, Scope::Whole),
            "a.toml:3: there is no service `x`; b.toml:3: there is no service `y`"
        );
        assert!(refused(&[service("a", &[]), service("a", &[])], Scope::Whole).contains("is declared in a.toml, too"));
    }

    #[test]
    fn a_dependency_of_the_image_is_believed_where_the_image_is_not_known() {
        let services = [service("a", &["image:net"])];
        assert!(order(&services, Scope::WithoutImage).is_ok());
        assert!(order(&services, Scope::Whole).is_err());
        assert_eq!(names(&[service("a", &["image:net"]), service("net", &[])]), ["net", "a"]);
    }

    proptest! {
        /// Edges only from higher to lower numbers make no cycle; one back edge along a path makes one.
        #[test]
        fn every_dependency_stands_before_its_dependents_and_cycles_are_refused(
            edges in prop::collection::vec(prop::collection::vec(any::<prop::sample::Index>(), 0..4), 1..24),
            shuffle in any::<prop::sample::Index>(),
        ) {
            let count = edges.len();
            // Names in another order than numbers, so that the order by name does not happen to be right.
            let name = |number: usize| format!("s{:02}", (number * 7 + shuffle.index(count)) % 97);
            let mut services = vec![];
            for (number, on) in edges.iter().enumerate() {
                let on: std::collections::BTreeSet<String> =
                    on.iter().filter(|_| number > 0).map(|index| name(index.index(number.max(1)))).collect();
                let on: Vec<&str> = on.iter().map(String::as_str).collect();
                services.push(service(&name(number), &on));
            }
            let order_of = |services: &[Service]| order(services, Scope::Whole);
            let placed = order_of(&services).unwrap();
            prop_assert_eq!(placed.len(), count);
            for (position, index) in placed.iter().enumerate() {
                for dependency in &services[*index].dependencies {
                    let before = placed[..position].iter().any(|earlier| services[*earlier].name == dependency.on);
                    prop_assert!(before, "{} before {}", dependency.on, services[*index].name);
                }
            }
            // From a dependency back to its dependent.
            let back = services.iter().find_map(|one| Some((one.dependencies.first()?.on.clone(), one.name.clone())));
            if let Some((from, to)) = back {
                let at = services.iter().position(|one| one.name == from).unwrap();
                let mut on: Vec<String> = services[at].dependencies.iter().map(|one| one.on.clone()).collect();
                on.push(to);
                let on: Vec<&str> = on.iter().map(String::as_str).collect();
                services[at] = service(&from, &on);
                let mistakes = order_of(&services).unwrap_err();
                prop_assert!(mistakes[0].message.contains("wait for each other") && mistakes[0].line == Some(3));
            }
        }
    }
}

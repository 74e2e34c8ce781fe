//! Who the calling user is outside of the user namespace that he is in.

/// Whether the calling user is root of the whole machine, and not only of a user namespace of his.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root() && outside(0) == 0
}

/// The number that a user of this user namespace has outside of it: that of `root` in `unshare -Ur` is the caller's.
pub fn outside(user: u32) -> u32 {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    mapped(&map, user).unwrap_or(user)
}

/// Lines of `inside outside count`, user_namespaces(7).
fn mapped(map: &str, user: u32) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut numbers = line.split_whitespace().map_while(|word| word.parse::<u32>().ok());
        let (inside, outside, count) = (numbers.next()?, numbers.next()?, numbers.next()?);
        let within = user.checked_sub(inside).filter(|within| *within < count)?;
        outside.checked_add(within)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_have_a_number_outside() {
        assert_eq!(mapped("         0       1001          1\n", 0), Some(1001));
        assert_eq!(mapped("0 1001 1\n1 100000 65536\n", 5), Some(100_004));
        assert_eq!(mapped("0 0 4294967295", 7), Some(7));
        assert_eq!(mapped("", 7), None);
    }
}

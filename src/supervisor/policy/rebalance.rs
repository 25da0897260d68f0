//! When and what workers give to each other, and when one has served long enough: pure functions of what the
//! scoreboard shows.

use crate::config::Wear;

/// Connections moved at a time: a few, so that nobody waits for it.
const AT_A_TIME: u32 = 100;

/// A move from the most to the least loaded worker, as (from, to, count); None when they are balanced: the most
/// loaded has at most 1.1 times as many as the least loaded, or one more. Loads are by slot, None where no worker
/// serves.
pub fn next_move(loads: &[Option<u32>]) -> Option<(usize, usize, u32)> {
    let serving = || loads.iter().enumerate().filter_map(|(slot, load)| Some((slot, (*load)?)));
    let (from, most) = serving().max_by_key(|(_, load)| *load)?;
    let (to, least) = serving().min_by_key(|(_, load)| *load)?;
    let balanced = u64::from(most) * 10 <= u64::from(least) * 11 || most - least <= 1;
    (!balanced).then(|| (from, to, ((most - least) / 2).clamp(1, AT_A_TIME)))
}

/// Why a worker that has used so much is to be replaced, if it is.
pub fn worn(bounds: &Wear, used: &Wear) -> Option<String> {
    let over = |used: u64, bound: u64| bound != 0 && used >= bound;
    if over(used.memory, bounds.memory) {
        let megabytes = used.memory / (1024 * 1024);
        return Some(format!("it uses {megabytes} MiB of memory"));
    }
    if !bounds.age.is_zero() && used.age >= bounds.age {
        return Some(format!("it is {:?} old", used.age));
    }
    over(used.messages, bounds.messages).then(|| format!("it has received {} messages", used.messages))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_most_loaded_gives_half_the_difference_to_the_least_loaded() {
        assert_eq!(
            next_move(&[Some(100), Some(0), Some(100)]).map(|(_, to, count)| (to, count)),
            Some((1, 50))
        );
        assert_eq!(next_move(&[Some(3), None, Some(1)]), Some((0, 2, 1)));
        assert_eq!(next_move(&[Some(10_000), Some(0)]), Some((0, 1, AT_A_TIME)));
    }

    #[test]
    fn balanced_workers_are_left_alone() {
        for loads in [&[Some(110), Some(100)][..], &[Some(1), Some(0)], &[Some(5), None], &[None], &[]] {
            assert_eq!(next_move(loads), None, "{loads:?}");
        }
    }

    #[test]
    fn moves_end_in_balance_from_any_start() {
        for mut loads in [vec![400, 0, 0, 0], vec![133, 134, 133, 0], vec![1, 0, 7]] {
            for _ in 0..1000 {
                let shown: Vec<Option<u32>> = loads.iter().copied().map(Some).collect();
                let Some((from, to, count)) = next_move(&shown) else { break };
                loads[from] -= count;
                loads[to] += count;
            }
            let (most, least) = (*loads.iter().max().unwrap(), *loads.iter().min().unwrap());
            assert!(most * 10 <= least * 11 || most - least <= 1, "{loads:?}");
        }
    }

    #[test]
    fn a_worker_is_worn_at_its_bounds_and_without_bounds_never() {
        let bounds = Wear { memory: 1 << 20, age: Duration::from_secs(2), messages: 0 };
        let used = |memory, age, messages| Wear { memory, age: Duration::from_nanos(age), messages };
        assert_eq!(worn(&bounds, &used((1 << 20) - 1, 1_999_999_999, u64::MAX)), None);
        assert_eq!(worn(&bounds, &used(1 << 20, 0, 0)).as_deref(), Some("it uses 1 MiB of memory"));
        assert_eq!(worn(&bounds, &used(0, 2_000_000_000, 0)).as_deref(), Some("it is 2s old"));
        assert_eq!(worn(&Wear::default(), &used(u64::MAX, u64::MAX, u64::MAX)), None);
    }
}

//! Random views: counts are what counting everything again tells.

use proptest::prelude::*;

use super::steps::any_step;
use crate::catalog::view::View;

fn recounted(view: &View) -> View {
    let mut again = view.clone();
    again.recount();
    again
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn counts_are_right_after_every_change_and_every_row(steps in proptest::collection::vec(any_step(), 0..80)) {
        // One view decides the changes, and another one is told of their rows, as an instance is of another one's.
        let (mut view, mut told) = (View::default(), View::default());
        for step in &steps {
            let Ok((_, writes)) = view.apply(step.change()) else { continue };
            prop_assert_eq!(&view, &recounted(&view), "after {:?}", step);
            writes.into_iter().for_each(|write| told.put(write));
            prop_assert_eq!(&told, &recounted(&told), "told of {:?}", step);
        }
        let stale = view.volumes.values().flat_map(|volume| volume.mounts.iter()).filter(|mount| view.stale(mount));
        prop_assert_eq!(view.stale_count(), stale.count());
        prop_assert_eq!(view.mount_count(), view.volumes.values().map(|volume| volume.mounts.len()).sum::<usize>());
        let volumes: usize = view.backends_in_use().map(|(_, counts)| counts.volumes).sum();
        prop_assert_eq!(volumes, view.volumes.len());
    }
}

/// Byte pair encoding of one word: the pair with the lowest rank is merged first, the leftmost among equals.
struct BytePairs: Sendable {
    struct Merge: Sendable {
        let rank: Int
        let result: Int
    }

    private var merges: [UInt64: Merge] = [:]

    init(capacity: Int) { merges.reserveCapacity(capacity) }

    /// Adds a rule; of two for one pair the later counts, as in the `tokenizers` library.
    mutating func add(_ left: Int, _ right: Int, rank: Int, result: Int) {
        merges[Self.key(left, right)] = Merge(rank: rank, result: result)
    }

    /// Merges `ids` until no rule applies; n log n steps.
    func merge(_ ids: [Int]) -> [Int] {
        guard ids.count > 1 else { return ids }
        var id = ids
        // Links over what is left of the word; -1 ends it, and a merged right half has the id -1.
        var previous = Array(-1..<ids.count - 1)
        var next = Array(1...ids.count)
        next[ids.count - 1] = -1
        var queue = Heap()
        func candidate(_ left: Int) -> Heap.Item? {
            let right = next[left]
            guard right >= 0, let merge = merges[Self.key(id[left], id[right])] else { return nil }
            return Heap.Item(rank: merge.rank, position: left, result: merge.result)
        }
        for left in 0..<ids.count - 1 {
            if let item = candidate(left) { queue.push(item) }
        }
        while let item = queue.pop() {
            let left = item.position
            // The pair may be gone, or be another one by now.
            guard id[left] >= 0, let now = candidate(left), now.result == item.result else { continue }
            let right = next[left]
            id[left] = item.result
            id[right] = -1
            next[left] = next[right]
            if next[left] >= 0 { previous[next[left]] = left }
            if let item = candidate(left) { queue.push(item) }
            if previous[left] >= 0, let item = candidate(previous[left]) { queue.push(item) }
        }
        return id.filter { $0 >= 0 }
    }

    private static func key(_ left: Int, _ right: Int) -> UInt64 {
        UInt64(UInt32(truncatingIfNeeded: left)) << 32 | UInt64(UInt32(truncatingIfNeeded: right))
    }
}

/// A binary heap of candidate merges, lowest rank and then leftmost first.
private struct Heap {
    struct Item {
        let rank: Int
        let position: Int
        let result: Int

        static func < (left: Item, right: Item) -> Bool { (left.rank, left.position) < (right.rank, right.position) }
    }

    private var items: [Item] = []

    mutating func push(_ item: Item) {
        items.append(item)
        var child = items.count - 1
        while child > 0, items[child] < items[(child - 1) / 2] {
            items.swapAt(child, (child - 1) / 2)
            child = (child - 1) / 2
        }
    }

    mutating func pop() -> Item? {
        guard let first = items.first, let last = items.popLast() else { return nil }
        guard !items.isEmpty else { return first }
        items[0] = last
        var parent = 0
        while true {
            var least = parent
            for child in [2 * parent + 1, 2 * parent + 2] where child < items.count && items[child] < items[least] {
                least = child
            }
            if least == parent { return first }
            items.swapAt(parent, least)
            parent = least
        }
    }
}

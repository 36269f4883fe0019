"""Explicit-state model of the protocol between LendingService and ShelvingService.

A script in Redis is one atomic step; everything between two steps may be interleaved with
everything else, cut off, or arrive late. `explore` visits every reachable state, checks the
invariants of ARCHITECTURE.md in each, and then that rest can be reached from every state without
further faults and that nothing can go round for ever.

The names are those of lua/*.lua, so that the two can be read side by side.
"""
import gc
import itertools
import time
from collections import namedtuple

# Books, users, events and instances are small integers, indices into the tuples below.
State = namedtuple('State', [
    'events',    # per event: 'n' not sent yet | 'q' queued | number of the instance it is pending for | 'd' decided
    'held',      # per instance, per event: None | Held (what the instance's memory knows of it)
    'inst',      # per instance: (token in the lock, token of the session; negative: the process is dead)
    'lent',      # per book: user | -1                      (lent_books)
    'storage',   # sorted books                             (automated_book_storage)
    'mark',      # per book: None | ('?', e) reserved by e | ('>', h) in hand-off h | ('=', e) lent to e
    'temp',      # per event: books reserved by a reference instance (request:{id}:temp)
    'shelf',     # per book: None on its shelf | event that fetched it | 'old' | 'ref'
    'handoffs',  # (id, books, pending for | -1) of each undone hand-off
    'outcome',   # per event: None | tuple
    'count',     # per user
    'late',      # commands still under way on connections that were given up
    'ties',      # None | (front, events that are noted to wait for it)
    'foreign',   # how many steps of the reference instance's script are done
    'faults',    # how many faults may still happen
])
# phase: 'fresh' just delivered | 'anew' perhaps tried before, by a dead instance or session | 'try' shelving has
#        answered | 'wait' | ('ask', books, doubt): reserved, to be asked for | ('unfetch', books), 'reject': given up
# said: '' | 'first' | 'in_doubt' | 'certain': how final a no is; answers: per book of the request None | 'yes' |
#        'again' | who has it; doubt: None | 'no' | what has to end before a no counts (see `doubt_now`)
# asked: whether shelving has been asked for all books since the event was delivered to this session
# more: how often shelving was asked for all books again
Held = namedtuple('Held', 'phase said answers doubt asked more', defaults=('', (), None, True, 0))
FRESH, ANEW, UNASKED = Held('fresh', asked=False), Held('anew', asked=False), Held('unasked', asked=False)
NOBODY, REFERENCE, MIDWAY = -1, 9, 'ref'
SCRIPTS = ('fetch', 'decide', 'shelve', 'unfetch', 'reject')

RULES = dict(  # what the protocol demands; holes.py switches them off one by one
    fenced=SCRIPTS,         # the scripts that are refused under another token than the lock's
    token_per_connection=True,  # an I/O error takes a new token
    token_per_lease=True,   # a lease taken again takes a new token
    regroup_ends=True,      # a group made anew ends all sessions before
    xack=True,              # a commit takes XACK for an answer
    is_mine=True,           # putting back and reserving only for the instance the event is pending for
    shelve_guard=True,      # shelve only if XACK answers 1
    reconcile=True,         # own pending events in nobody's hand are found
    skip='once',            # who may be decided without asking shelving first: 'fresh' what was just delivered | 'any'
                            # | 'once' any, but who has to wait asks at its next try | None nobody
    ask_again=0,            # who waits for what is older may ask shelving for all books again at any try: so often | 'any'
    again='own',            # "again" counts: 'own' under a reservation | 'certain' beside the reference only if in no
                            # doubt | 'any' always
    scan=True,              # beside the reference a book is looked for in the undone hand-offs before it is reserved
    again_asks=True,        # "again" is reserved and asked for before anything else
    again_kept=True,        # who cannot know whether "again" still holds asks for all books on its next try
    reserve=True,           # a book is reserved before a no counts
    ask_twice=True,         # a no without a reservation does not count
    transit=True,           # a book marked '>' whose hand-off is undone is waited for
    reserved=True,          # so is a book marked '?'
    names=True,             # so is a book that an undecided request has, as shelving says
    release=True,           # who has to wait puts back what was fetched
    order=True,             # refusals wait for what is older
    foresee=True,           # who would have to wait anyhow reserves nothing
    told_no=True,           # after a final no nothing is reserved until a refusal is allowed
    doubt=True,             # a no is in doubt while unmarked hand-offs or reference instances' requests are undone
    settle=True,            # and until those have ended
    keep_doubt=True,        # a doubt is kept while a book is waited for
    young_loans=True,       # a return leaves loans of younger requests alone
    tie='on',               # equal milliseconds: None total order | 'strict' wait for all | 'on' the rule with ties
    tie_clear='touched',    # notes end: 'touched' with an effect on their user or books | None never
    tie_full=True,          # a whole bound of events in one millisecond is not waited for
    slots=None,             # that bound and the waiting bound: None | ('stream', n) | ('shared', n) events of an instance
    claim_bound=False,      # claims obey the waiting bound
    give_up='unfetch',      # what a dead letter may have fetched: 'unfetch' where it has it | 'any' whoever has it |
                            # 'handoff' is handed to shelving | None stays
    reject_unmarks=True,    # reservations of what was unfetched end with the event
)
SETTING = dict(  # the library and its misfortunes
    instances=2, capacity=1, limit=2, storage=(), lent=(), loan_of=(), nowhere=(), temps_of=(), fetched=(),
    handed=(), many=None, foreign=(), owned=(), traffic=False, arrive=False, in_order=False, restart=True, dead_letters=False,
    faults=1, kinds=('expire', 'crash'), late=SCRIPTS, depth=1, must=None)


class Violation(Exception):
    pass


def req(event_id, user, *books): return event_id, 'req', user, books
def ret(event_id, user, *books): return event_id, 'ret', user, books


def put(t, i, v):
    return t[:i] + (v,) + t[i + 1:]


class Model:
    def __init__(self, events, books, **knobs):
        """`events`: (id, 'req' | 'ret', user, books); an id is a number or (ms, seq)."""
        assert not set(knobs) - set(RULES) - set(SETTING), knobs
        self.__dict__.update({**RULES, **SETTING, **knobs})
        self.spec, self.books = events, books
        ids = [e[0] if isinstance(e[0], tuple) else (e[0], 0) for e in events]
        # the total order: millisecond, sequence, request before return
        self.key = [(ms, seq, 'req ret'.split().index(e[1])) for (ms, seq), e in zip(ids, events)]
        self.all = range(len(events))
        self.nothing = (None,) * len(events)

    def kind(self, e): return self.spec[e][1]
    def ms(self, e): return self.key[e][0]

    def start(self):
        count = [0, 0]
        lent, shelf, mark = [NOBODY] * self.books, [None] * self.books, [None] * self.books
        for b, u in self.lent:
            lent[b] = u; count[u] += 1
        for e, b in self.loan_of: mark[b] = ('=', e)
        for b in [b for b, _ in self.lent] + list(self.storage) + list(self.nowhere) + list(self.handed): shelf[b] = 'old'
        temp = [()] * len(self.spec)
        for e, books in self.temps_of: temp[e] = books
        for e, b in self.fetched: shelf[b] = e
        events = ['n' if self.arrive else 'q' for _ in self.all]
        for e in self.owned: events[e] = REFERENCE
        return State(tuple(events), (self.nothing,) * self.instances, ((1, 1),) * self.instances, tuple(lent),
                     tuple(sorted(self.storage)), tuple(mark), tuple(temp), tuple(shelf),
                     tuple((100 + k, (b,), NOBODY) for k, b in enumerate(self.handed)), self.nothing, tuple(count),
                     (), None, 0, self.faults)

    # ---- what the state says

    def undecided(self, S): return [x for x in self.all if S.events[x] not in ('n', 'd')]
    def is_pending(self, S, e): return isinstance(S.events[e], int)
    def is_undone(self, S, h): return any(x[0] == h for x in S.handoffs)
    def midway(self, S): return S.foreign > 0 and self.foreign[S.foreign - 1][0] == 'fetch'

    def truth(self, S, b):
        """Where book b really is, known to nobody but the model."""
        if S.lent[b] >= 0: return 'lent'
        if b in S.storage: return 'storage'
        for x in self.undecided(S):
            if b in S.temp[x]: return ('reserved', x)
        if S.shelf[b] is None: return 'shelf'
        if any(b in h[1] for h in S.handoffs): return 'transit'
        if self.is_undecided(S, S.shelf[b]): return ('reserved', S.shelf[b])
        return 'nowhere'

    def is_undecided(self, S, x):
        """Whether a request that shelving named is undecided: then it has its book reserved."""
        return self.midway(S) if x == MIDWAY else isinstance(x, int) and S.events[x] != 'd'

    def in_transit(self, S, mark): return self.transit and mark is not None and mark[0] == '>' and self.is_undone(S, mark[1])

    def doubt_now(self, S):
        """Why a no could come too early: undone hand-offs, and requests that reference instances work on."""
        if not self.doubt: return ()
        return tuple(h[0] for h in S.handoffs) + ((('ref', S.foreign),) if self.midway(S) else ())

    def settled(self, S, doubt):
        return not self.settle or not any(S.foreign == d[1] if isinstance(d, tuple) else self.is_undone(S, d) for d in doubt)

    # ---- order: nothing older is undecided, and what cannot be told apart is known to wait for e

    def front(self, S): return min(self.undecided(S), key=lambda x: self.key[x], default=None)

    def is_tie(self, x, e):
        """Ids of submit.lua can be compared across the streams: here sequence numbers from a million on."""
        return not (self.key[x][1] >= 10 ** 6 and self.key[e][1] >= 10 ** 6)

    def nothing_older(self, S, e):
        if not self.order: return True
        tied = S.ties[1] if S.ties and S.ties[0] == e else ()
        others = [x for x in self.undecided(S) if x != e and self.kind(x) != self.kind(e) and self.ms(x) == self.ms(e)]
        full = self.tie_full and self.slots and sum(self.is_pending(S, x) for x in others) >= self.slots[1]
        for x in self.undecided(S):
            if x == e: continue
            if self.key[x] < self.key[e] and (self.tie is None or self.kind(x) == self.kind(e) or x in others or self.ms(x) < self.ms(e)):
                return False
            if x in others and self.tie and self.is_tie(x, e) and not full and (self.tie == 'strict' or x not in tied): return False
        return True

    def note(self, D, e):
        """e waits for the front of its own millisecond, which need not wait for e any longer."""
        f = self.front(D)
        others = [x for x in self.undecided(D) if self.kind(x) != self.kind(e)]
        if self.tie != 'on' or f == e or self.ms(f) != self.ms(e) or not others or min(map(self.ms, others)) != self.ms(e): return D
        old = D.ties[1] if D.ties and D.ties[0] == f else ()
        return D._replace(ties=(f, tuple(sorted(set(old) | {e}))))

    def untie(self, D, e, effect, refused):
        """e is decided, and out of the undecided already."""
        if D.ties is None: return None
        waited = refused and any(self.kind(x) != self.kind(e) and self.ms(x) == self.ms(e) for x in self.undecided(D))
        f, tied = D.ties
        touched = [x for x in tied if self.spec[x][2] == self.spec[e][2] or set(self.spec[x][3]) & set(self.spec[e][3])]
        tied = [x for x in tied if x != e and not (effect and self.tie_clear and x in touched)]
        if f == e:
            if not waited: return None
            f = self.front(D)  # what waited for e waits for the next in front
            if f is None or self.ms(f) != self.ms(e): return None
            tied = [x for x in tied if x != f]
        return (f, tuple(tied)) if tied else None

    def younger_loan(self, S, e, b):
        """Book b is lent to a request that is younger than return e. In a tie that is not known, and it is not."""
        m = S.mark[b]
        if not self.young_loans or m is None or m[0] != '=': return False
        x = m[1]
        return self.ms(x) > self.ms(e) or self.ms(x) == self.ms(e) and not self.is_tie(x, e) and self.key[x] > self.key[e]

    # ---- scripts of lending; D is a State whose parts are lists, to be changed

    def open(self, S): return State(*[list(x) if isinstance(x, tuple) and k != 'ties' else x for k, x in zip(State._fields, S)])
    def close(self, D): return State(*[tuple(x) if isinstance(x, list) else x for x in D])

    def put_back(self, D, books, shelve=()):
        """Into automated storage while there is room, the rest (and `shelve`) in one hand-off."""
        rest = list(shelve)
        for b in books:
            D.mark[b] = None
            if len(D.storage) < self.capacity: D.storage.append(b); D.storage.sort()
            else: rest.append(b)
        if rest:
            hands = [x for held in D.held for x in held if x] + [c[3][1] for c in D.late if c[0] == 'decide']
            used = ({x[0] for x in D.handoffs} | {c[3][0] for c in D.late if c[0] == 'shelve'}
                    | {m[1] for m in D.mark if m and m[0] == '>'}
                    | {d for x in hands for d in (x.doubt if isinstance(x.doubt, tuple) else ())}
                    | {d for x in hands if x.phase[0] == 'ask' for d in x.phase[2] or ()})
            h = min(set(range(99)) - used)
            D.handoffs.append((h, tuple(rest), NOBODY))
            for b in rest: D.mark[b] = ('>', h)

    def settle_event(self, D, e, outcome, refused=False):
        """Outcome, XACK and XDEL."""
        if D.outcome[e] is not None: raise Violation('second outcome for event %d' % e)
        D.outcome[e], D.events[e], D.temp[e] = outcome, 'd', ()
        effect = outcome[0] not in ('none', 'unchanged', 'many')
        return self.close(D._replace(ties=None if outcome[0] == 'rejected' else self.untie(D, e, effect, refused))), None, outcome

    def stale(self, S): return S, None, 'stale'

    def decide(self, S, i, e, held):
        """decide.lua for one event: the new state, what the instance knows then, the outcome."""
        return (self.decide_return if self.kind(e) == 'ret' else self.decide_request)(S, i, e, held)

    def decide_return(self, S, i, e, held):
        _, _, u, books = self.spec[e]
        mine = [b for b in books if S.lent[b] == u and not self.younger_loan(S, e, b)]
        other = [b for b in books if b not in mine]
        D = self.open(S)
        if other and not self.nothing_older(S, e): return self.close(self.note(D, e)), Held('wait'), None
        if self.xack and not self.is_pending(S, e): return self.stale(S)
        if other: self.check_refusal(S, e, other)
        for b in mine:
            m = S.mark[b]
            if m and m[0] == '=' and self.ms(m[1]) > self.ms(e): raise Violation('return %d takes back the younger loan of book %d' % (e, b))
            D.lent[b] = NOBODY; D.count[u] -= 1; D.mark[b] = None
        self.put_back(D, mine)
        return self.settle_event(D, e, ('returned', tuple(mine)) if mine else ('unchanged',), bool(other))

    def decide_request(self, S, i, e, held):
        _, _, u, books = self.spec[e]
        mine = S.events[e] == i or not self.is_mine
        doubt = None if held.said else held.doubt  # of an earlier try
        have, instant, free, asked, unknown, refused, nowhere = [], [], [], [], [], [], []
        blocked = in_doubt = may_keep = False
        for b, answer in zip(books, held.answers or (None,) * len(books)):
            mark = S.mark[b]
            own = mark == ('?', e) or not self.reserve and held.said not in ('', 'first') and answer is not None
            moving = self.in_transit(S, mark) or self.scan and self.foreign and any(b in h[1] for h in S.handoffs)
            again = answer == 'again' and (own and (self.again == 'own' or not self.foreign or held.said == 'certain') or self.again == 'any')
            # With so many hand-offs under way they are not looked through: the book may have been put back since.
            blind = self.many is not None and len(S.handoffs) >= self.many
            if answer == 'again' and own and blind: again = False
            no = answer not in (None, 'yes', 'again')
            taken = no and self.names and self.is_undecided(S, answer)
            if own and (S.lent[b] >= 0 or b in S.storage): asked.append(b)
            if S.lent[b] >= 0: refused.append(b)
            elif b in S.temp[e]: have.append(b)
            elif b in S.storage: instant.append(b)
            elif answer == 'yes' or again: have.append(b)
            elif own and answer is None or answer == 'again' and not own and not moving and self.again_asks: unknown.append(b)
            elif own:
                asked.append(b)
                if answer == 'again': blocked = may_keep = True
                elif taken or held.said == 'certain' and blind: blocked = True
                elif held.said == 'certain': nowhere.append(b)
                else: in_doubt = True
            elif mark and mark[0] == '?' and self.reserved or moving or taken: blocked = True
            elif no and not self.ask_twice: nowhere.append(b)
            else: free.append(b)
        available = have + instant + free
        many = S.count[u] + len(available) > self.limit
        told_no = doubt == 'no' or bool(nowhere)
        refusal = blocked or in_doubt or many or len(available) < len(books) or self.told_no and told_no and bool(free)
        D = self.open(S)

        def fetch(wanted, certain=False):
            if not mine: return self.stale(S)
            for b in wanted:
                if self.reserve: D.mark[b] = ('?', e)
            # What another had then, it may not have now.
            answers = tuple(a if a in ('yes', 'again') else None for a in held.answers)
            return self.close(D), Held(('ask', tuple(wanted), None if certain else self.doubt_now(S) or None), '', answers, asked=held.asked), None

        def wait(D, in_doubt):
            if have or asked or S.temp[e]:
                if not mine: return self.stale(S)
                D.temp[e] = ()
                for b in asked: D.mark[b] = None
                if self.release: self.put_back(D, have)
            if may_keep and self.again_kept: return self.close(D), UNASKED, None
            kept = held.doubt if in_doubt else 'no' if told_no else doubt if self.keep_doubt else None
            return self.close(D), Held('wait', doubt=kept), None

        if unknown: return fetch(unknown)
        if blocked or in_doubt: return wait(D, in_doubt)
        if refusal and (self.foresee or not free) and not self.nothing_older(S, e): return wait(self.note(D, e), False)
        if free:
            settled = isinstance(doubt, tuple) and self.settled(S, doubt)
            if isinstance(doubt, tuple) and not settled: return wait(D, True)
            return fetch(free, settled)
        if self.xack and not self.is_pending(S, e): return self.stale(S)
        for b in asked: D.mark[b] = None
        if not available or many or len(available) < len(books):
            self.check_refusal(S, e, [b for b in books if b not in available])
        if not available: return self.settle_event(D, e, ('none',), True)
        for b in instant: D.storage.remove(b)
        if many:
            self.put_back(D, available)
            return self.settle_event(D, e, ('many', tuple(available)), True)
        for b in available: D.lent[b] = u; D.mark[b] = ('=', e)
        D.count[u] += len(available)
        return self.settle_event(D, e, ('accepted', tuple(available)), refusal)

    def may_have(self, S, e):
        """reject.lua, "look": what the request may have fetched."""
        return tuple(b for b in self.spec[e][3] if self.kind(e) == 'req' and b not in S.temp[e] and S.lent[b] < 0
                     and b not in S.storage and not (S.mark[b] and S.mark[b][0] == '>' and self.is_undone(S, S.mark[b][1])))

    def reject(self, S, e):
        """reject.lua: to the dead letters, with the outcome `rejected`."""
        if self.xack and not self.is_pending(S, e): return S
        D, books = self.open(S), self.may_have(S, e)
        for b in books:
            if D.mark[b] and D.mark[b][0] == '?' and (self.reject_unmarks or D.mark[b] == ('?', e)): D.mark[b] = None
        self.put_back(D, S.temp[e], books if self.give_up == 'handoff' else ())
        return self.settle_event(D, e, ('rejected',))[0]

    # ---- scripts of shelving

    def fetch(self, S, e, books):
        """(new state, for each book "yes" | "again" | who has it)"""
        answers = tuple('yes' if S.shelf[b] is None else 'again' if S.shelf[b] == e else S.shelf[b] for b in books)
        return S._replace(shelf=tuple(e if x is None and b in books else x for b, x in enumerate(S.shelf))), answers

    def unfetch(self, S, e, books):
        return S._replace(shelf=tuple(None if b in books and (x == e or self.give_up == 'any') else x for b, x in enumerate(S.shelf)))

    def shelve(self, S, h, books):
        """XACK tells whether the hand-off is pending, not for whom."""
        if self.shelve_guard and not any(x[0] == h and x[2] != NOBODY for x in S.handoffs): return S
        D = self.open(S)
        for b in books:
            D.shelf[b] = None
            if D.mark[b] == ('>', h): D.mark[b] = None  # a mark of a done hand-off counts as absent
        D.handoffs[:] = [x for x in S.handoffs if x[0] != h]
        D.held[:] = [tuple(x and self.without(x, h) for x in held) for held in S.held]
        return self.close(D)

    def without(self, x, h):
        """Of hand-offs that are done nobody is in doubt: their numbers are used again."""
        if isinstance(x.doubt, tuple): return x._replace(doubt=tuple(d for d in x.doubt if d != h))
        if x.phase[0] == 'ask' and x.phase[2]: return x._replace(phase=x.phase[:2] + (tuple(d for d in x.phase[2] if d != h),))
        return x

    # ---- steps: each yields its name and the state after it. What is before the colon says whose step it is: what can
    # ---- be done again and again must be done some time.

    def hold(self, S, i, e, held): return S._replace(held=put(S.held, i, put(S.held[i], e, held)))

    def begin_anew(self, S, i, token):
        """A new token; everything in hand is dropped, own pending entries are read."""
        return S._replace(inst=put(S.inst, i, (token, token)),
                          held=put(S.held, i, tuple(ANEW if S.events[e] == i else None for e in self.all)))

    def has_room(self, S, i, kind):
        if self.slots is None: return True
        return sum(o == i and (self.slots[0] == 'shared' or self.kind(e) == kind) for e, o in enumerate(S.events)) < self.slots[1]

    def run_late(self, S, call):
        kind, i, _, args = call
        if kind == 'decide': return self.decide(S, i, *args)[0]
        if kind == 'fetch': return self.fetch(S, *args)[0]
        return getattr(self, kind)(S, *args)

    def steps(self, S):
        for step, T in self.all_steps(S): yield step, self.tidy(T)

    def tidy(self, S):
        """Tokens matter only as long as commands with old ones are under way."""
        inst = S.inst
        for i, (lease, session) in enumerate(inst):
            if session not in (1, -1) and not any(c[1] == i for c in S.late):
                inst = put(inst, i, (lease and (1 if lease == abs(session) else 2), 1 if session > 0 else -1))
        return S if inst is S.inst else S._replace(inst=inst)

    def all_steps(self, S):
        if self.arrive: yield from self.arrivals(S)
        if self.foreign: yield from self.foreign_steps(S)
        if self.traffic and len([h for h in S.handoffs if h[0] >= 300]) < 2:  # without end: others' hand-offs, of other books
            h = next(h for h in (300, 301) if not self.is_undone(S, h))
            yield 'others: hand books off', S._replace(handoffs=S.handoffs + ((h, (), NOBODY),))
        instances = range(self.instances)
        # As long as nothing tells them apart, it is the first that does something.
        if S.held == (self.nothing,) * self.instances and len(set(S.inst)) == 1 and not S.late and not any(
                x in instances for x in S.events + tuple(h[2] for h in S.handoffs)): instances = (0,)
        for i in instances:
            lease, session = S.inst[i]
            alive, calls = session > 0, []
            if alive and lease == session:
                yield from self.reads(S, i)
                yield from self.work(S, i, calls)
                yield from self.sweeps(S, i)
            elif alive and not lease:
                yield 'i%d: takes a new lease' % i, self.begin_anew(S, i, session + self.token_per_lease)
            if not alive and lease:
                yield 'i%d: the lease of the dead runs out' % i, S._replace(inst=put(S.inst, i, (0, session)))
            elif not alive and self.restart:
                yield 'i%d: restarts' % i, self.begin_anew(S, i, 1 - session)
            if S.faults: yield from self.misfortunes(S._replace(faults=S.faults - 1), i, [c for c in calls if c[0] in self.late])
        if S.faults and 'vanish' in self.kinds:  # an operator's XGROUP DELCONSUMER; who waits asks anew some time later
            held = tuple(tuple(x and x._replace(more=0) for x in hands) for hands in S.held)
            for n, h in enumerate(S.handoffs):
                yield 'FAULT hand-off %s is lost' % h[0], S._replace(
                    handoffs=S.handoffs[:n] + S.handoffs[n + 1:], held=held, faults=S.faults - 1)
        if S.faults and 'regroup' in self.kinds: yield from self.regroups(S._replace(faults=S.faults - 1))
        first = set()  # what was sent on one connection arrives in order
        for n, call in enumerate(S.late):
            if call[1:3] in first: continue
            first.add(call[1:3])
            T = S._replace(late=S.late[:n] + S.late[n + 1:])
            stale = S.inst[call[1]][0] != call[2] and call[0] in self.fenced
            yield 'late %s%s: arrives' % (self.say(call), ' (fenced)' if stale else ''), T if stale else self.run_late(T, call)

    def say(self, call): return 'i%d %s %s' % (call[1], call[0], call[3][0] if call[0] == 'decide' else call[3])

    def arrivals(self, S):
        for e in self.all:
            if S.events[e] == 'n' and not any(S.events[x] == 'n' and (
                    self.ms(x) < self.ms(e) or self.kind(x) == self.kind(e) and self.key[x] < self.key[e]) for x in self.all):
                yield 'client: sends e%d' % e, S._replace(events=put(S.events, e, 'q'))

    def foreign_steps(self, S):
        """The reference instance: no lease, no marks, one step of its script after the other."""
        if S.foreign == len(self.foreign): return
        what, b, u = self.foreign[S.foreign]
        T = S._replace(foreign=S.foreign + 1)
        if what == 'fetch' and S.shelf[b] is None and S.lent[b] < 0 and b not in S.storage:
            yield 'reference: fetches b%d' % b, T._replace(shelf=put(S.shelf, b, MIDWAY))
        elif what == 'lend' and S.shelf[b] == MIDWAY or what == 'borrow' and b in S.storage:
            yield 'reference: lends b%d' % b, T._replace(
                lent=put(S.lent, b, u), count=put(S.count, u, S.count[u] + 1), storage=tuple(x for x in S.storage if x != b))
        elif what == 'give' and S.lent[b] == u:
            yield 'reference: takes b%d back' % b, T._replace(
                lent=put(S.lent, b, NOBODY), count=put(S.count, u, S.count[u] - 1),
                handoffs=S.handoffs + ((200 + S.foreign, (b,), NOBODY),))

    def reads(self, S, i):
        for kind in ('req', 'ret'):
            queued = [e for e in self.all if S.events[e] == 'q' and self.kind(e) == kind]
            if queued and self.has_room(S, i, kind):
                e = min(queued, key=lambda x: self.key[x])
                T = S._replace(events=put(S.events, e, i))
                yield 'i%d %s: reads e%d' % (i, kind, e), self.hold(T, i, e, FRESH)
                if S.faults and 'lostread' in self.kinds:
                    yield 'FAULT i%d reads e%d, the reply is lost' % (i, e), T._replace(faults=S.faults - 1)
        queued = [n for n, h in enumerate(S.handoffs) if h[2] == NOBODY]
        if queued:
            h = S.handoffs[queued[0]]
            yield 'i%d: reads hand-off %s %s' % (i, h[0], h[1]), S._replace(handoffs=put(S.handoffs, queued[0], h[:2] + (i,)))
        for j in list(range(self.instances)) + [REFERENCE]:
            if j == i or j != REFERENCE and S.inst[j][0]: continue
            theirs = [e for e in self.all if S.events[e] == j]
            if not theirs and not any(h[2] == j for h in S.handoffs): continue
            if self.claim_bound: theirs = [e for e in theirs if self.has_room(S, i, self.kind(e))][:1]
            T = S._replace(handoffs=tuple(h[:2] + (i,) if h[2] == j else h for h in S.handoffs))
            for e in theirs: T = self.hold(T._replace(events=put(T.events, e, i)), i, e, ANEW)
            yield 'i%d: claims from %s' % (i, 'the reference' if j == REFERENCE else 'i%d' % j), T

    def work(self, S, i, calls):
        token = S.inst[i][1]
        for e in self.all:
            held, of = S.held[i][e], 'i%d e%d: ' % (i, e)
            if held is None:
                if S.events[e] == i and self.reconcile: yield of + 'is found', self.hold(S, i, e, ANEW)
                continue
            if self.in_order and held.phase in ('fresh', 'anew') and any(
                    S.held[i][x] and S.held[i][x].phase != 'wait' and self.key[x] < self.key[e]
                    and set(self.spec[x][3]) & set(self.spec[e][3]) for x in self.all): continue
            step, books = held.phase if held.phase[0] == 'unfetch' else (held.phase, ())
            if step == 'unfetch':
                calls.append(('unfetch', i, token, (e, books)))
                yield of + 'is given up, shelving takes back %s' % (books,), self.hold(self.unfetch(S, e, books), i, e, Held('reject'))
                continue
            if step == 'reject':
                calls.append(('reject', i, token, (e,)))
                yield of + 'is rejected', self.hold(self.reject(S, e), i, e, None)
                continue
            asks_first = self.kind(e) == 'req' and step in ('fresh', 'anew', 'unasked')
            asks_again = self.kind(e) == 'req' and step == 'wait' and held.doubt is None and (
                self.ask_again == 'any' or held.more < self.ask_again)
            asks_all = asks_first or asks_again
            if asks_all or step[0] == 'ask':
                _, books, doubt = ('', self.spec[e][3], None) if asks_all else step
                said = 'first' if asks_all else 'certain' if doubt is None else 'in_doubt'
                T, answers = self.fetch(S, e, books); calls.append(('fetch', i, token, (e, books)))
                got = dict(zip(books, answers))
                before = held.answers or (None,) * len(self.spec[e][3])
                after = Held('try', said, tuple(got.get(b, a) for b, a in zip(self.spec[e][3], before)), doubt,
                             asks_all or held.asked or self.skip != 'once', held.more + (asks_again and self.ask_again != 'any'))
                # Its time comes, whatever else is tried.
                who = 'i%d e%d anew: ' % (i, e) if asks_again else of
                yield who + 'asks for %s: %s' % (books, answers), self.hold(T, i, e, after)
            if not asks_first and step[0] != 'ask' or asks_first and (self.skip == step or self.skip == 'any' or self.skip == 'once' and step != 'unasked'):
                T, after, outcome = self.decide(S, i, e, held); calls.append(('decide', i, token, (e, held)))
                if after and after.phase == 'wait': after = UNASKED if self.skip == 'once' and not held.asked else Held('wait', doubt=after.doubt)
                if after: after = after._replace(more=held.more)
                yield of + 'decides: %s' % (outcome or after.phase,), self.hold(T, i, e, after)
            if self.dead_letters and S.faults:
                books = self.may_have(S, e) if self.give_up in ('unfetch', 'any') else ()
                yield 'FAULT ' + of + 'cannot be worked on', self.hold(
                    S._replace(faults=S.faults - 1), i, e, Held(('unfetch', books)) if books else Held('reject'))
        for h, books, owner in S.handoffs:
            if owner != i: continue
            calls.append(('shelve', i, token, (h, books)))
            yield 'i%d hand-off %s: is shelved' % (i, h), self.shelve(S, h, books)

    def sweeps(self, S, i):
        """sweep.lua: reservations of decided requests, which only a lost group or the reference can leave."""
        for b, m in enumerate(S.mark):
            if not m or m[0] != '?' or S.events[m[1]] != 'd': continue
            if S.lent[b] < 0 and S.shelf[b] == m[1]: yield 'i%d: sweeps, shelving takes b%d back' % (i, b), self.unfetch(S, m[1], (b,))
            else: yield 'i%d: sweeps b%d' % (i, b), S._replace(mark=put(S.mark, b, None))

    def misfortunes(self, T, i, calls):
        lease, session = T.inst[i]
        if session < 0: return
        drop = put(T.held, i, self.nothing)
        if lease == session and 'expire' in self.kinds:
            yield from self.cut(T._replace(inst=put(T.inst, i, (0, session)), held=drop), 'FAULT i%d loses its lease' % i, calls)
        if lease and 'crash' in self.kinds:
            yield from self.cut(T._replace(inst=put(T.inst, i, (lease, -session)), held=drop), 'FAULT i%d crashes' % i, calls)
        if lease == session and 'io' in self.kinds:
            # Without a command under way as well: all that was in hand is forgotten.
            yield from self.cut(self.begin_anew(T, i, session + self.token_per_connection), 'FAULT i%d: I/O error' % i, calls)

    def cut(self, T, what, calls):
        """No command is under way, or some are, of different events."""
        yield what, T
        for n in range(1, self.depth + 1):
            for some in itertools.permutations(calls, n):
                if len({(c[0] == 'shelve', c[3][0]) for c in some}) < n: continue
                yield '%s with %s under way' % (what, ', '.join(map(self.say, some))), T._replace(late=T.late + some)

    def regroups(self, T):
        """A group is destroyed and made anew at 0: all that is undecided is delivered again."""
        if self.regroup_ends: T = T._replace(inst=tuple((0, p) for _, p in T.inst), held=(self.nothing,) * self.instances)
        for kind in ('req', 'ret'):
            if any(self.is_pending(T, e) and self.kind(e) == kind for e in self.all):
                yield 'FAULT group of %s made anew' % kind, T._replace(events=tuple(
                    'q' if self.kind(e) == kind and isinstance(o, int) else o for e, o in enumerate(T.events)))
        if any(h[2] != NOBODY for h in T.handoffs):
            yield 'FAULT group of shelving made anew', T._replace(handoffs=tuple(h[:2] + (NOBODY,) for h in T.handoffs))

    # ---- what must hold

    def check_refusal(self, S, e, books):
        for x in self.undecided(S):
            if x == e: continue
            if self.kind(x) == self.kind(e) and self.key[x] < self.key[e] or self.ms(x) < self.ms(e):
                raise Violation('refusal of event %d while the older %d is undecided' % (e, x))
            if self.kind(x) != self.kind(e) and self.ms(x) == self.ms(e):
                if self.key[x] < self.key[e]:
                    raise Violation('event %d refused before %d, smaller in its millisecond' % (e, x))
                if self.could_act(S, x) and not (self.tie_full and self.slots) and self.is_tie(x, e):
                    raise Violation('event %d refused while %d of its millisecond could act' % (e, x))
        if self.kind(e) == 'ret': return
        for b in books:
            t = self.truth(S, b)
            if t != 'lent' and not (t == 'nowhere' and b in self.nowhere):
                raise Violation('event %d refused book %d that is %s' % (e, b, t))

    def could_act(self, S, x):
        """x would be granted or taken back whole, were it tried now."""
        _, kind, u, books = self.spec[x]
        if kind == 'ret': return all(S.lent[b] == u and not self.younger_loan(S, x, b) for b in books)
        return (all(self.truth(S, b) in ('shelf', 'storage', ('reserved', x)) for b in books)
                and S.count[u] + len(books) <= self.limit)

    def check(self, S):
        if len(S.storage) > self.capacity: raise Violation('storage over its capacity')
        for b in range(self.books):
            m, inside = S.mark[b], S.lent[b] >= 0 or b in S.storage
            if (S.lent[b] >= 0) + (b in S.storage) + sum(b in t for t in S.temp) + sum(b in h[1] for h in S.handoffs) > 1:
                raise Violation('book %d in two places' % b)
            if inside and S.shelf[b] is None: raise Violation('book %d lent or stored, yet on its shelf' % b)
            if m and m[0] == '?' and not self.foreign:
                if inside: raise Violation('book %d reserved and lent or stored' % b)
                if S.events[m[1]] == 'd' and self.regroup_ends: raise Violation('book %d reserved by a decided request' % b)
        for u in range(2):
            if S.count[u] != S.lent.count(u): raise Violation('count of user %d' % u)
            if S.count[u] > self.limit: raise Violation('user %d over the limit' % u)
        for i, hands in enumerate(S.held):
            for e, held in enumerate(hands):
                if held and S.events[e] == i and held.phase == 'wait' and ('?', e) in S.mark:
                    raise Violation('event %d waits and holds a reservation' % e)

    def at_rest(self, S):
        return all(x == 'd' for x in S.events) and not S.handoffs and not S.late and not self.midway(S) and not any(
            m and m[0] == '?' for m in S.mark)

    def check_rest(self, S):
        if None in S.outcome: raise Violation('event without outcome')
        if any(m and m[0] != '=' for m in S.mark) or any(S.temp): raise Violation('reservation left at rest')
        for b in range(self.books):
            if b not in self.nowhere and (S.shelf[b] is not None) != (S.lent[b] >= 0 or b in S.storage):
                raise Violation('at rest: book %d fetched for %s, lent to %s, storage %s' % (b, S.shelf[b], S.lent[b], S.storage))
        if self.must and not self.must(S.outcome): raise Violation('outcomes %s' % (S.outcome,))


def explore(name, model, max_states=1000000, seconds=600):
    """Prints and returns (name, number of states, verdict); `ends`: different ways in which all came to rest."""
    began = time.time()
    S = model.start()
    index, parent, label, states, after, ends = {S: 0}, [None], [None], [S], [], set()
    verdict, cut, n = None, False, 0

    def history(n):
        lines = []
        while parent[n] is not None: lines.append(label[n]); n = parent[n]
        return ''.join('\n      ' + line for line in reversed(lines))

    while n < len(states) and not verdict and not cut:
        S, out = states[n], []
        try:
            model.check(S)
            if model.at_rest(S): model.check_rest(S); ends.add((S.outcome, S.lent, S.storage))
            for step, T in model.steps(S):
                j = index.get(T)
                if j is None:
                    j = index[T] = len(states)
                    states.append(T); parent.append(n); label.append(step)
                out.append((j, step))
        except Violation as bad:
            verdict = 'VIOLATION: %s%s' % (bad, history(n))
        after.append(out); n += 1
        cut = len(states) > max_states or time.time() - began > seconds
    if not verdict and not cut:
        verdict = stuck(model, states, after, history) or for_ever([set(S.events) == {'d'} for S in states], after, history) or 'ok'
    verdict = verdict or 'CUT'
    print('%-48s %7d states %5.1fs %2d ends  %s' % (name, len(states), time.time() - began, len(ends), verdict), flush=True)
    return name, len(states), verdict


def stuck(model, states, after, history):
    """A state from which rest cannot be reached without a further fault."""
    before = [[] for _ in states]
    for a, out in enumerate(after):
        for b, step in out:
            if not step.startswith('FAULT'): before[b].append(a)
    good = [model.at_rest(S) for S in states]
    todo = [a for a, g in enumerate(good) if g]
    while todo:
        for a in before[todo.pop()]:
            if not good[a]: good[a] = True; todo.append(a)
    if not all(good):
        a = good.index(False)
        return 'STUCK (%d states cannot reach rest), first:%s\n      %s' % (good.count(False), history(a), states[a])


def for_ever(done, after, history):
    """A way to go round for ever in which everybody who can always do something does something, be it in vain."""
    degree = [0] * len(after)
    for a, out in enumerate(after):
        for b, _ in out: degree[b] += a != b
    todo = [a for a, d in enumerate(degree) if not d]
    while todo:  # what is left after this (Kahn) is on a cycle or behind one
        a = todo.pop()
        for b, _ in after[a]:
            if a != b:
                degree[b] -= 1
                if not degree[b]: todo.append(b)
    for circle in circles({a for a, d in enumerate(degree) if d}, after):
        if all(done[a] for a in circle): continue
        whose = lambda step: step.split(':')[0]
        always = set.intersection(*[{whose(step) for _, step in after[a]} for a in circle])
        inside = {whose(step) for a in circle for b, step in after[a] if b in circle}
        if not always <= inside: continue
        a = min(circle)
        walk, b = [], a
        way = {a: None}
        todo = [a]
        for c in todo:  # the shortest way round, as an example
            for d, step in after[c]:
                if d == a and c != a: walk = [step]; b = c; break
                if d in circle and d not in way: way[d] = (c, step); todo.append(d)
            if walk: break
        while way[b]: walk.insert(0, way[b][1]); b = way[b][0]
        return 'FOR EVER after%s\n      goes round: %s' % (history(a), ' ; '.join(walk))


def circles(left, after):
    """The strongly connected components of more than one state (Tarjan, without recursion)."""
    order, low, stack, on, found = {}, {}, [], set(), []
    for root in left:
        if root in order: continue
        work = [(root, iter(after[root]))]
        order[root] = low[root] = len(order); stack.append(root); on.add(root)
        while work:
            a, ways = work[-1]
            for b, _ in ways:
                if b not in left: continue
                if b not in order:
                    order[b] = low[b] = len(order); stack.append(b); on.add(b)
                    work.append((b, iter(after[b]))); break
                if b in on: low[a] = min(low[a], order[b])
            else:
                work.pop()
                if work: low[work[-1][0]] = min(low[work[-1][0]], low[a])
                if low[a] == order[a]:
                    at = stack.index(a) if len(stack) < 50 else len(stack) - 1 - stack[::-1].index(a)
                    circle = set(stack[at:]); del stack[at:]; on -= circle
                    if len(circle) > 1: found.append(circle)
    return found


def explore_one(job):
    name, events, books, knobs = job
    gc.disable()  # a million states and no rings among them
    return explore(name, Model(events, books, **knobs))

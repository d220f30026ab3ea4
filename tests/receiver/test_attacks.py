"""Anyone who knows a target can post to it: whatever an attacker does there, and whenever, he achieves nothing.

Asana's handshake is anonymous, so its secret proves nothing by itself; Asana's 201 says which one is true. The attacker
here knows the target as soon as there is one, before Asana's own handshake has left, which is the worst case.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from attrs import evolve, frozen

from asana_webhooks import AsanaSession, EstablishedWebhook, MemoryStore, Secret, SQLiteStore, TargetRejectedError
from asana_webhooks.store.base import (
    DeliveryState,
    NewDelivery,
    PutResult,
    Registration,
    RegistrationState,
    Store,
    registration_id,
)
from asana_webhooks.testing import FakeAsana
from tests.helpers.attackers import (
    EITHER,
    STORES,
    Attacker,
    Stage,
    going_on,
    half_posted,
    held_in_file,
    post,
    signed,
    stage,
)
from tests.helpers.raw import until
from tests.helpers.receiving import receiver_process
from tests.helpers.stores import ENDPOINT, SECRET, Clock, body, event
from tests.subscriptions.scenes import arrived

CONFIRMED, PENDING = RegistrationState.CONFIRMED, RegistrationState.PENDING

# What the attacker does, and the status he is answered with.

Step = tuple[Callable[[Attacker], Awaitable[int]], int]

ECHOED: Step = (Attacker.shake, 200)
UNHEARD: Step = (Attacker.shake, 401)
QUARANTINED: Step = (Attacker.forge, 200)
REFUSED: Step = (Attacker.forge, 401)
BEAT_KEPT_BACK: Step = (Attacker.beat, 200)
BEAT_REFUSED: Step = (Attacker.beat, 401)
MIX_QUARANTINED: Step = (Attacker.mix, 200)
MIX_REFUSED: Step = (Attacker.mix, 401)
REPLAY_ECHOED: Step = (Attacker.replay, 200)
REPLAY_UNHEARD: Step = (Attacker.replay, 401)
UNSIGNED: Step = (Attacker.ask, 401)


@frozen(kw_only=True)
class Attack:
    """What the attacker does at each of the moments there are."""

    before: tuple[Step, ...] = ()
    """The create call is open, and Asana's handshake has not been sent yet."""
    between: tuple[Step, ...] = ()
    """Asana's handshake has been echoed, and its 201 has not come yet."""
    after: tuple[Step, ...] = ()
    """The 201 has come."""


ATTACKS = {
    "none": Attack(),
    "handshake before": Attack(before=(ECHOED,)),
    "handshake between": Attack(between=(ECHOED,)),
    "handshake after": Attack(after=(UNHEARD,)),
    "handshake at all times": Attack(before=(ECHOED,), between=(ECHOED,), after=(UNHEARD,)),
    "replay of Asana's secret": Attack(between=(REPLAY_ECHOED,), after=(REPLAY_UNHEARD,)),
    "all slots but Asana's": Attack(before=(ECHOED,) * 2, between=(ECHOED, UNHEARD, REPLAY_ECHOED)),
    "forgery without a handshake": Attack(before=(REFUSED,), between=(REFUSED,), after=(REFUSED,)),
    "forgery inside the window": Attack(before=(ECHOED, QUARANTINED), between=(QUARANTINED,) * 2, after=(REFUSED,)),
    "forgery before and after an echo": Attack(between=(REFUSED, ECHOED, QUARANTINED), after=(REFUSED,)),
    "heartbeat inside the window": Attack(between=(BEAT_REFUSED, ECHOED, BEAT_KEPT_BACK), after=(BEAT_REFUSED,)),
    "secret and signature at once": Attack(
        before=(MIX_REFUSED, ECHOED), between=(MIX_QUARANTINED,), after=(MIX_REFUSED,)
    ),
    "nothing signed": Attack(before=(UNSIGNED,), between=(UNSIGNED,), after=(UNSIGNED,)),
}


def flood(handshakes: int, *, echoed: int) -> Step:
    """So many handshakes at once, each with a secret of its own, and how many of them are echoed."""

    async def flood(attacker: Attacker) -> int:
        return await attacker.flood(handshakes)

    return flood, echoed


FLOODS = {
    "1 before": Attack(before=(flood(1, echoed=1),)),
    "3 before": Attack(before=(flood(3, echoed=3),)),
    "4 before": Attack(before=(flood(4, echoed=4),)),
    "200 before": Attack(before=(flood(200, echoed=4),)),
    "200 between": Attack(between=(flood(200, echoed=3),)),
    "200 after": Attack(after=(flood(200, echoed=0),)),
    "at all times": Attack(before=(flood(2, echoed=2),), between=(flood(50, echoed=1),), after=(flood(50, echoed=0),)),
}
BLOCKING = {"4 before", "200 before"}
"""Those that leave no room for Asana's own handshake."""


async def play(here: Stage, attack: Attack) -> tuple[Attacker, EstablishedWebhook | None]:
    """Establish a webhook under attack; return what came of it, ``None`` if Asana was sent away."""
    shaking = here.fake.hold("handshake")
    answering = here.fake.hold("createWebhook", when="after_handshake")
    async with going_on(here.establish()) as establishing, going_on(answering.reached()) as echoed:
        await shaking.reached()
        attacker = Attacker(here.fake.requests[-1].body["data"]["target"])
        await perform(attack.before, attacker)
        shaking.release()

        await asyncio.wait({echoed, establishing}, return_when=asyncio.FIRST_COMPLETED)
        if not echoed.done():
            with pytest.raises(TargetRejectedError):
                await establishing
            return attacker, None
        attacker.overheard = here.fake.handshakes[-1].secret
        await here.change_something()  # Asana's own events fall into the window too
        await perform(attack.between, attacker)
        answering.release()

        established = await establishing
        await perform(attack.after, attacker)
        return attacker, established


async def perform(steps: tuple[Step, ...], attacker: Attacker) -> None:
    for move, status in steps:
        assert await move(attacker) == status, move.__name__


async def achieved(here: Stage, attacker: Attacker, established: EstablishedWebhook | None) -> set[str]:
    """Return what an attack has achieved: nothing, if the receiver is any good."""
    found = set()
    if established is None:
        found.add("blocked")
    if 200 in await asyncio.gather(*map(attacker.forge, list(attacker.secrets))):
        found.add("taken over")
    await here.change_something()
    sent = [(one.body, one.status) for one in here.fake.deliveries if one.events]
    if [(one.body, 200) for one in await arrived(here.store)] != sent:
        found.add("true deliveries are lost, or others among them")
    if attacker.traces() & set(here.held()):
        found.add("something stays in the store")
    return found


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("door", ["aiohttp", "asgi"])
async def test_an_attacker_achieves_nothing(door: str, kind: str, attack: str, tmp_path: Path) -> None:
    """Whatever he does and whenever: the true webhook works, forgeries are refused, and nothing of his is kept."""
    async with stage(door, kind, tmp_path) as here:
        attacker, established = await play(here, ATTACKS[attack])

        assert await achieved(here, attacker, established) == set()
        assert established is not None
        registration = await here.registration(established)
        assert (registration.state, registration.candidates) == (CONFIRMED, ())
        assert registration.secret == here.fake.secret(established.webhook_gid) == attacker.overheard
        assert not await here.store.deliveries(state=DeliveryState.DEAD)
        refusals = {answer.undated for answer in attacker.answers if answer.status == 401}
        assert len(refusals) <= 1
        assert all(answer.body == b"" for answer in attacker.answers)


@pytest.mark.parametrize("attack", FLOODS)
@pytest.mark.parametrize(("door", "kind"), EITHER)
async def test_a_flood_of_handshakes_takes_nothing_over(door: str, kind: str, attack: str, tmp_path: Path) -> None:
    """Before Asana's handshake it can send Asana away; then establishing again works, for its endpoint is a new one."""
    async with stage(door, kind, tmp_path) as here:
        attacker, established = await play(here, FLOODS[attack])

        assert (established is None) is (attack in BLOCKING)
        assert await achieved(here, attacker, established or await here.establish()) == set()
        assert len(here.fake.webhooks) == 1


class LastHandshakeCounts(MemoryStore):
    """As Asana's own example has it: whoever shakes hands replaces the secret, and nobody looks at the 201."""

    def __init__(self) -> None:
        super().__init__()
        self.secrets: dict[str, Secret] = {}

    async def add_candidate(self, id: str, secret: Secret) -> bool:
        await super().add_candidate(id, SECRET)
        await super().confirm_registration(id, webhook_gid="1", secret=SECRET)
        self.secrets[id] = secret
        return True

    async def find_registration(self, id: str) -> Registration | None:
        found = await super().find_registration(id)
        if found is None or id not in self.secrets:
            return found
        return evolve(found, state=PENDING, candidates=(self.secrets[id],), secret=None)  # hears handshakes for ever

    async def put(self, delivery: NewDelivery) -> PutResult:
        return await super().put(evolve(delivery, candidate=None))

    async def confirm_registration(
        self, id: str, *, webhook_gid: str, secret: Secret, heartbeat_at: float | None = None
    ) -> bool:
        return True

    async def close_registration(self, id: str) -> bool:
        return True


class FirstHandshakeCounts(LastHandshakeCounts):
    """As others mend that: whoever comes first has set the secret."""

    async def add_candidate(self, id: str, secret: Secret) -> bool:
        return self.secrets[id] == secret if id in self.secrets else await super().add_candidate(id, secret)


@pytest.mark.parametrize(
    ("broken", "attack", "harm"),
    [
        (LastHandshakeCounts, Attack(before=(ECHOED,)), set()),
        (LastHandshakeCounts, Attack(between=(ECHOED,)), {"taken over"}),
        (LastHandshakeCounts, Attack(after=(ECHOED,)), {"taken over"}),
        (FirstHandshakeCounts, Attack(before=(ECHOED,)), {"taken over", "blocked"}),
        (FirstHandshakeCounts, Attack(between=(UNHEARD,)), set()),
        (FirstHandshakeCounts, Attack(after=(UNHEARD,)), set()),
    ],
)
async def test_the_attacks_are_real(broken: type[MemoryStore], attack: Attack, harm: set[str], tmp_path: Path) -> None:
    """A receiver that believes the last handshake or the first one is taken over, exactly when that is to be feared."""
    async with stage("aiohttp", "memory", tmp_path, store=broken()) as here:
        found = await achieved(here, *await play(here, attack))

        assert found & {"taken over", "blocked"} == harm
        assert bool(found) is bool(harm)


@pytest.mark.parametrize("end", ["none ever", "overdue", "closed while pending", "closed later"])
@pytest.mark.parametrize(("door", "kind"), EITHER)
async def test_where_no_webhook_is_there_is_nothing_to_attack(door: str, kind: str, end: str, tmp_path: Path) -> None:
    """At an unknown, overdue or closed endpoint all is answered 404 in the same bytes, and nothing is kept."""
    clock, id = Clock(), registration_id(ENDPOINT)
    async with stage(door, kind, tmp_path, clock=clock) as here:
        attacker = Attacker(f"{here.public_url}/{ENDPOINT}", overheard=SECRET)
        if end != "none ever":
            opened = {"resource": "8675309", "public_url": "https://example.com/asana"}
            assert await here.store.open_registration(id, **opened, ttl=60)
            await here.store.add_candidate(id, SECRET)
            await perform((ECHOED, QUARANTINED), attacker)
        if end == "closed later":
            await here.store.confirm_registration(id, webhook_gid="43214", secret=SECRET)
        if end.startswith("closed"):
            await here.store.close_registration(id)
        if end == "overdue":
            clock.now += 61
        attacker.answers.clear()
        moves = (Attacker.shake, Attacker.replay, Attacker.forge, Attacker.beat, Attacker.mix, Attacker.ask)
        await perform(tuple((move, 404) for move in moves), attacker)
        true = body(event())
        attacker.answers.append(await post(attacker.target, signed(SECRET, true), true))
        await here.store.expire_registrations()

        assert len({answer.undated for answer in attacker.answers}) == 1
        assert attacker.answers[-1].body == b""
        assert not ({*attacker.traces(), SECRET.reveal(), true} & set(here.held()))


@pytest.mark.parametrize(("door", "kind"), EITHER)
async def test_what_begins_in_the_window_is_judged_at_its_end(door: str, kind: str, tmp_path: Path) -> None:
    """Of two deliveries that begin before the 201 and end after it, only the one it proves right is kept."""
    true, forged = body(event()), body(event(action="forged"))
    async with stage(door, kind, tmp_path) as here, here.window() as window:
        attacker = Attacker(window.target)
        await attacker.shake()
        looked_up = noticing_finds(here.store)
        async with (
            half_posted(window.target, signed(window.secret, true), true, sent=9) as asanas,
            half_posted(window.target, signed(attacker.secrets[0], forged), forged, sent=9) as his,
        ):
            await until(lambda: len(looked_up) == 2)
            assert looked_up == [PENDING, PENDING]
            await window.close()

            assert (await asanas()).status == 200
            assert (await his()).status in {401, 404}
        assert [one.body for one in await arrived(here.store)] == [true]
        assert forged not in set(here.held())


def noticing_finds(store: Store) -> list[RegistrationState]:
    """Return a list to which the state is added of every registration that is found."""
    find, states = store.find_registration, []

    async def noticed(id: str) -> Registration | None:
        found = await find(id)
        states.extend([found.state] if found else [])
        return found

    store.find_registration = noticed  # type: ignore[method-assign]
    return states


@pytest.mark.parametrize("kind", STORES)
async def test_a_forged_heartbeat_shows_no_life(kind: str, tmp_path: Path) -> None:
    """Only Asana's heartbeats are noted, so that nobody else can make a webhook look alive."""
    clock = Clock()
    fake = FakeAsana(heartbeat=None)
    async with stage("aiohttp", kind, tmp_path, fake=fake, clock=clock) as here, here.window() as window:
        await perform((ECHOED, BEAT_KEPT_BACK), Attacker(window.target))
        forged_at, clock.now = clock.now, clock.now + 1

        registration = await here.registration(await window.close())
        assert registration.last_heartbeat_at != forged_at


@pytest.mark.slow
@pytest.mark.parametrize("door", ["aiohttp", "asgi"])
async def test_the_receiver_may_be_another_process(door: str, tmp_path: Path) -> None:
    """Who creates and who receives share the store's file alone, and an attacker achieves nothing there either."""
    file = tmp_path / "asana.db"
    async with SQLiteStore(file) as store, receiver_process(file, door=door) as process:
        for name in ("handshake at all times", "forgery inside the window", "200 before"):
            async with FakeAsana() as fake, AsanaSession(fake.token, base_url=fake.url) as asana:
                here = Stage(fake, asana, store, process.url, lambda: held_in_file(file))
                attacker, established = await play(here, (ATTACKS | FLOODS)[name])

                assert (established is None) is (name in BLOCKING)
                established = established or await here.establish()
                assert await achieved(here, attacker, established) == set()
                await store.close_registration(established.registration)  # the next one watches the same project

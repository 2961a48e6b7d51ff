"""asyncpg: prepared statements of its own cache, transactions, executemany, a cursor, COPY, type look-ups."""

import asyncio
import ssl

import asyncpg
import work


async def main():
    work.begin()
    tls = ssl.create_default_context(cafile=work.CA)
    db = await asyncpg.connect(
        host=work.HOST, port=work.PORT, user=work.USER, password=work.PASSWORD, database=work.DATABASE, ssl=tls
    )
    await db.execute("create table work (n int)")
    await db.execute("create type mood as enum ('calm', 'rough')")
    insert = await db.prepare("insert into work values ($1)")
    written = 0
    while work.going_on():
        for _ in range(5):
            await insert.fetch(written)
            written += 1
        async with db.transaction():
            await db.executemany("insert into work values ($1)", [(written,), (written + 1,)])
            assert len([row async for row in db.cursor("select generate_series(1, 30)", prefetch=7)]) == 30
        written += 2
        await db.copy_records_to_table("work", records=[(written,)])
        written += 1
        assert await db.fetchval("select array['calm']::mood[]") == ["calm"]
        work.seen(await db.fetchval("select pg_backend_pid()"))
    row = await db.fetchrow("select count(*), count(distinct n) from work")
    work.finish(written, *row)
    await db.close()


asyncio.run(main())

"""psycopg 3, asyncio: two connections at work at once, transactions and prepared statements."""

import asyncio

import psycopg
import work


async def client(number, db, written):
    while work.going_on():
        for _ in range(3):
            n = len(written) * 2 + number
            await db.execute("insert into work values (%s)", (n,))
            written.append(n)
        async with db.transaction():
            n = len(written) * 2 + number
            await db.execute("insert into work values (%s)", (n,))
        written.append(n)
        if number == 0:
            row = await (await db.execute("select pg_backend_pid()")).fetchone()
            work.seen(row[0])


async def main():
    work.begin()
    one = await psycopg.AsyncConnection.connect(**work.CONNECT, autocommit=True, prepare_threshold=2)
    two = await psycopg.AsyncConnection.connect(**work.CONNECT, autocommit=True, prepare_threshold=2)
    async with one, two:
        await one.execute("create table work (n int)")
        books = ([], [])
        await asyncio.gather(client(0, one, books[0]), client(1, two, books[1]))
        query = "select count(*), count(distinct n) from work"
        row = await (await two.execute(query)).fetchone()
        work.finish(len(books[0]) + len(books[1]), *row)


asyncio.run(main())

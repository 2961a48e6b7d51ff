"""PyMySQL: autocommit, transactions, an unbuffered cursor, several statements at once, LOAD DATA LOCAL, an error."""

import mysql_work as work
import pymysql
from pymysql.constants import CLIENT

work.begin()
tls = dict(ssl_ca=work.CA, ssl_verify_cert=True, ssl_verify_identity=True) if work.TLS else dict(ssl_disabled=True)
db = pymysql.connect(
    host=work.HOST,
    port=work.PORT,
    user=work.USER,
    password=work.PASSWORD,
    database=work.DATABASE,
    autocommit=True,
    local_infile=True,
    client_flag=CLIENT.MULTI_STATEMENTS,
    **tls,
)
cursor = db.cursor()
cursor.execute(work.CREATE)
cursor.execute("set @mine = %s, time_zone = '+03:00'", ("Grüße ☃",))
written = 0
while work.going_on():
    for _ in range(5):
        work.must_be(cursor.execute(work.INSERT, (written, "one")), 1)
        written += 1
    db.begin()
    cursor.executemany(work.INSERT, [(written + i, "many") for i in range(3)])
    db.commit()
    written += 3
    db.begin()
    cursor.execute(work.INSERT, (written, "not to stay"))
    db.rollback()
    cursor.execute("select 1; select 'two', @mine; set @n = @n + 1")
    work.must_be(cursor.fetchall(), ((1,),))
    assert cursor.nextset()
    work.must_be(cursor.fetchall(), (("two", "Grüße ☃"),))
    while cursor.nextset():
        pass
    with db.cursor(pymysql.cursors.SSCursor) as stream:
        stream.execute(f"select n, repeat('x', 1000) from {work.TABLE} order by n limit 200")
        rows = list(stream)
        work.must_be([n for n, _ in rows], list(range(min(written, 200))))
    written += work.load(cursor, written)
    cursor.execute(f"select repeat('a', {work.LARGE})")
    work.must_be(cursor.fetchone(), ("a" * work.LARGE,))
    try:
        cursor.execute(work.INSERT, (0, "taken"))
        raise SystemExit("a second row of the same number")
    except pymysql.err.IntegrityError as error:
        work.must_be(error.args[0], 1062)
    db.ping(reconnect=False)
    cursor.execute("select connection_id(), @@session.time_zone")
    number, zone = cursor.fetchone()
    work.must_be(zone, "+03:00")
    work.round_over(number)
cursor.execute(work.COUNT)
work.finish(written, *cursor.fetchone())
db.close()
